"""Out-of-memory errors, read: the numbers in CUDA's message, a first verdict, and what the kernel's counters say."""

import contextlib
import math
import re
from pathlib import Path

from epochcast.jobs import GpuMemory

_SIZE = r"([\d.]+) (bytes|KiB|MiB|GiB)"
_GIB = {"bytes": 2.0**-30, "KiB": 2.0**-20, "MiB": 2.0**-10, "GiB": 1.0}
# As c10's CUDA caching allocator words it, from torch 2.1 on.
_REQUESTED = re.compile(rf"Tried to allocate {_SIZE}")
_TOTAL = re.compile(rf"total capacity of {_SIZE}")
_FREE = re.compile(rf"of which {_SIZE} is free")
_OWN = re.compile(rf"this process has {_SIZE} memory in use")
_OTHER = re.compile(rf"Process \d+ has {_SIZE} memory in use")
_ALLOCATED = re.compile(rf"{_SIZE} is allocated by PyTorch")
_UNALLOCATED = re.compile(rf"{_SIZE} is reserved by PyTorch but unallocated")
_FRAGMENTED_FROM = 1.0
_OTHERS_NOTEWORTHY_GIB = 1.0


def is_cuda_oom(text: str) -> bool:
    """Whether a message is one that CUDA or one of its libraries gives when the GPU's memory is used up."""
    return any(
        sign in text
        for sign in (
            "CUDA out of memory",
            "CUDA error: out of memory",
            "STATUS_ALLOC_FAILED",
            "cudaErrorMemoryAllocation",
        )
    )


def is_host_oom(text: str) -> bool:
    """Whether a message is one of torch's CPU allocator or of the system when there is no more host memory."""
    return "DefaultCPUAllocator: can't allocate memory" in text or "Cannot allocate memory" in text


def read_memory(text: str) -> GpuMemory | None:
    """The numbers in a CUDA out-of-memory message; None if it holds none."""
    allocated, unallocated = _gib(_ALLOCATED, text), _gib(_UNALLOCATED, text)
    total, free, own = _gib(_TOTAL, text), _gib(_FREE, text), _gib(_OWN, text)
    others = sum(float(size) * _GIB[unit] for size, unit in _OTHER.findall(text))
    if not others and total is not None and free is not None and own is not None:
        others = max(0.0, total - free - own)  # processes that this container can't see
    memory = GpuMemory(
        requested_gib=_gib(_REQUESTED, text),
        free_gib=free,
        allocated_gib=allocated,
        reserved_gib=None if allocated is None or unallocated is None else round(allocated + unallocated, 2),
        total_gib=total,
        others_gib=None if total is None else round(others, 2),
    )
    return memory if memory.requested_gib is not None or memory.total_gib is not None else None


def verdict(memory: GpuMemory, batch_size: int | None, batch_named: str = "batch_size") -> str | None:
    """A first piece of advice. The batch size is an upper limit: memory that doesn't grow with the batch isn't known,
    and the allocation that failed needn't have been the last of its step."""
    requested, total, allocated = memory.requested_gib, memory.total_gib, memory.allocated_gib
    if requested is None or total is None or allocated is None:
        return None
    others = memory.others_gib or 0.0
    times = (allocated + requested) / max(total - others, 0.01)
    shared = f"; {others:.1f} GiB are held by other processes" if others >= _OTHERS_NOTEWORTHY_GIB else ""
    if times < _FRAGMENTED_FROM:
        unused = (memory.reserved_gib or allocated) - allocated
        if unused >= requested:
            return f"memory is fragmented: {unused:.1f} GiB are reserved but unused in pieces too small{shared}"
        return f"too little memory by {requested - (memory.free_gib or 0.0):.1f} GiB{shared}"
    if batch_size is None or batch_size == 1:
        return f"too large for this GPU by about {times:.1f}x{shared}"
    return f"batch too large by about {times:.1f}x: try {batch_named} <= {_rounded_down(batch_size / times)}{shared}"


def count_oom_kills(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes the kernel has killed for memory: on this machine since boot, or in this cgroup.

    A growth of the number during an attempt is the evidence that `from_exit` asks for.
    """
    counts = [0]
    files = [proc / "vmstat", cgroups / "memory.events"]
    with contextlib.suppress(OSError):
        own = (proc / "self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        files.append(cgroups / own / "memory.events")
    for file in files:
        with contextlib.suppress(OSError):
            counts += [int(count) for count in re.findall(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)]
    return max(counts)


def _gib(pattern: re.Pattern[str], text: str) -> float | None:
    match = pattern.search(text)
    return None if match is None else round(float(match[1]) * _GIB[match[2]], 4)


def _rounded_down(batch_size: float) -> int:
    """To the next lower power of two or three quarters of one: 64, 96, 128, 192, …"""
    if batch_size < 2:
        return 1
    power = 1 << math.floor(math.log2(batch_size))
    return power * 3 // 2 if power * 1.5 <= batch_size and power >= 2 else power
