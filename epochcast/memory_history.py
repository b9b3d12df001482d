"""Has torch note who allocates what on the GPU, so that an out-of-memory error can be looked into afterwards."""

MAX_ENTRIES = 100_000


def record(max_entries: int = MAX_ENTRIES) -> bool:
    """Starts (or restarts) recording; False where CUDA isn't there.

    Python's stacks only, taken when memory is allocated: torch's documentation says 2 µs each, which a network of many
    small operations feels, so it is never on by itself. Entries are a ring: a day-long training keeps the newest.
    """
    import torch

    if not torch.cuda.is_available():
        return False
    torch.cuda.memory._record_memory_history("all", context="alloc", stacks="python", max_entries=max_entries)
    return True
