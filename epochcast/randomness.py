"""The random states of a training process: seeded anew for each epoch, saved and restored inside one."""

import hashlib
import io
import random
import sys
from typing import Any


def reseed(seed: int, epoch: int, rank: int) -> None:
    """Seeds Python, and numpy, torch and its GPUs if they are imported, from all three numbers.

    So an epoch that a resumed attempt trains draws what it would have drawn without the interruption, and no two
    ranks draw the same.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{rank}".encode()).digest()
    number = int.from_bytes(digest[:8], "big") >> 1  # torch takes what fits a signed 64-bit integer
    random.seed(number)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(number % 2**32)
    if (torch := sys.modules.get("torch")) is not None:
        if hasattr(torch, "accelerator") and torch.accelerator.current_accelerator() is None:
            # `manual_seed` notes where it was called, for each kind of device that this torch lacks: 3 ms at first.
            torch.default_generator.manual_seed(number)
        else:
            torch.manual_seed(number)  # the GPUs' generators too


def states() -> dict[str, Any]:
    """All random states, in types that `torch.load(weights_only=True)` reads."""
    import torch

    version, numbers, gauss = random.getstate()
    saved: dict[str, Any] = {"python": [version, list(numbers), gauss], "torch": torch.get_rng_state()}
    if (numpy := sys.modules.get("numpy")) is not None:
        kind, keys, *rest = numpy.random.get_state()
        saved["numpy"] = [kind, keys.tolist(), *rest]
    cuda: Any = torch.cuda
    if cuda.is_initialized():
        saved["cuda"] = cuda.get_rng_state_all()
    return saved


def packed(saved: dict[str, Any]) -> bytes:
    """The states of `states` as bytes, for another rank."""
    import torch

    stream = io.BytesIO()
    torch.save(saved, stream)
    return stream.getvalue()


def unpacked(content: bytes) -> dict[str, Any]:
    import torch

    saved: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return saved


def restore(saved: dict[str, Any]) -> None:
    """Puts back what `states` returned; a library that is not imported now is left out."""
    import torch

    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(saved["torch"])
    if "numpy" in saved and (numpy := sys.modules.get("numpy")) is not None:
        kind, keys, *rest = saved["numpy"]
        numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
    if "cuda" in saved:
        torch.cuda.set_rng_state_all(saved["cuda"])
