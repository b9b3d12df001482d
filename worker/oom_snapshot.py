"""The allocator's own story of a CUDA out-of-memory error, as the file that pytorch.org/memory_viz opens."""

import hashlib
import pickle
import sys
from pathlib import Path
from typing import IO, Any

# A script that records without a limit has a history of many GiB: then the newest part of it is kept.
MAX_BYTES = 256 * 2**20


class NoSnapshot(Exception):
    """Raised when no snapshot could be written; the message says why."""


def is_recorded() -> bool:
    """Whether the script (or `run.record_memory`) had torch record the allocations of this process."""
    torch = sys.modules.get("torch")
    is_enabled = getattr(torch._C, "_cuda_isHistoryEnabled", None) if torch is not None else None
    return bool(is_enabled is not None and is_enabled())


def write(folder: Path, rank: int, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Writes it into `folder`; returns what the supervisor is told. Raises NoSnapshot.

    Like `torch.cuda.memory._dump_snapshot`, but bounded: while it is too large the older half of its history goes.
    """
    path = folder / f"oom-snapshot-{rank}.pickle"
    try:
        content = sys.modules["torch"].cuda.memory._snapshot()
        while not _fits(content, path, max_bytes):
            if not any(content["device_traces"]):
                raise NoSnapshot(f"the state of the allocator alone is over {max_bytes} bytes")
            content["device_traces"] = [trace[len(trace) - len(trace) // 2 :] for trace in content["device_traces"]]
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"type": "oom_snapshot", "file": path.name, "bytes": path.stat().st_size, "sha256": sha256}
    except NoSnapshot:
        path.unlink(missing_ok=True)
        raise
    except Exception as error:  # private functions of torch, a full disk, no host memory: none may hide the OOM itself
        path.unlink(missing_ok=True)
        raise NoSnapshot(f"{type(error).__name__}: {error}") from error


class _TooLarge(Exception):
    """Raised when a file would grow over its limit."""


class _Bounded:
    """A file for pickle that refuses to grow over `room` bytes."""

    def __init__(self, stream: IO[bytes], room: int) -> None:
        self._stream = stream
        self._room = room

    def write(self, block: bytes) -> int:
        self._room -= len(block)
        if self._room < 0:
            raise _TooLarge
        return self._stream.write(block)


def _fits(content: object, path: Path, max_bytes: int) -> bool:
    with path.open("wb") as stream:
        try:
            pickle.dump(content, _Bounded(stream, max_bytes))
        except _TooLarge:
            return False
    return True
