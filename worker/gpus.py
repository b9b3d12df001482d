"""The host's GPUs as NVML sees them: what there is, what is used, and by which processes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory of a GPU. `used_bytes` is None where the driver doesn't say (containers)."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU now. `utilisation`: part of the last moment in which it computed, 0 to 1; None where unknown."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    used_bytes: int
    utilisation: float | None
    processes: tuple[GpuProcess, ...]


def list_gpus() -> list[Gpu]:
    """All GPUs of this host that answer; none where there is no NVIDIA driver or its library is missing."""
    with _nvml() as nvml:
        if nvml is None:
            return []
        found = [_optional(nvml, partial(_read, nvml, index)) for index in range(nvml.nvmlDeviceGetCount())]
        return [gpu for gpu in found if gpu is not None]


class GpuBusy(Exception):
    """Raised when a GPU that a job was placed on stays fuller than placement counted on."""


def wait_free(uuids: Sequence[str], memory_gib: float | None, timeout_s: float = 30.0) -> None:
    """Waits until each of these GPUs has `memory_gib` free: an ended process gives its memory back a moment later.

    Raises GpuBusy after `timeout_s`.
    """
    if not uuids or not memory_gib:
        return
    deadline = time.monotonic() + timeout_s
    while True:
        free = {gpu.uuid: (gpu.total_bytes - gpu.used_bytes) / 2**30 for gpu in list_gpus()}
        short = [uuid for uuid in uuids if free.get(uuid, 0.0) < memory_gib]
        if not short:
            return
        if time.monotonic() > deadline:
            found = f"{free[short[0]]:.1f} GiB free" if short[0] in free else "gone"
            raise GpuBusy(f"GPU {short[0]} was placed with {memory_gib:g} GiB free, but is {found}")
        time.sleep(0.5)


@contextmanager
def _nvml() -> Iterator[Any]:
    """The library for the length of one query, so that a driver which comes, goes or hangs is noticed by the next."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError):
        yield None
        return
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _read(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    busy = _optional(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
    processes = _optional(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return Gpu(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total_bytes=memory.total,
        used_bytes=memory.used,
        utilisation=busy,
        processes=tuple(GpuProcess(process.pid, process.usedGpuMemory) for process in processes),
    )


def _optional(nvml: Any, query: Callable[[], Any]) -> Any:
    """None where there is no answer: some cards and MIG slices don't know everything, a broken card nothing."""
    try:
        return query()
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
