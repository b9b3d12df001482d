"""What a trainer can see of its GPU after an error: name, memory now, and who else holds some of it."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epochcast.jobs import GpuMemory
from worker.gpus import Gpu, GpuProcess, list_gpus

_NAMED_AT_MOST = 5


@dataclass(frozen=True, slots=True)
class GpuNow:
    """One GPU as it is now: after an exception, so more may be free than when it was raised."""

    name: str
    memory: GpuMemory | None
    others: tuple[GpuProcess, ...]


def look(device: int | None) -> GpuNow | None:
    """At the GPU with this number among those that the process sees (None: its current one).

    None where CUDA was never used here. Asks the driver, which may be beyond answering: then without numbers.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    number = torch.cuda.current_device() if device is None or device >= torch.cuda.device_count() else device
    properties = torch.cuda.get_device_properties(number)
    gpu = next((one for one in list_gpus() if str(properties.uuid) in one.uuid), None)
    others = tuple(one for one in gpu.processes if one.pid != os.getpid()) if gpu is not None else ()
    return GpuNow(properties.name, _memory(torch, number, gpu), others)


def _memory(torch: Any, number: int, gpu: Gpu | None) -> GpuMemory | None:
    try:
        free, total = torch.cuda.mem_get_info(number)
    except RuntimeError:  # the context is broken: every later call fails with the first error
        return None
    return GpuMemory(
        free_gib=_gib(free),
        total_gib=_gib(total),
        allocated_gib=_gib(torch.cuda.memory_allocated(number)),
        reserved_gib=_gib(torch.cuda.memory_reserved(number)),
        others_gib=_others(gpu),
    )


def _others(gpu: Gpu | None) -> float | None:
    """What other processes hold; None where the driver doesn't say which one holds what (containers)."""
    if gpu is None or not any(one.pid == os.getpid() for one in gpu.processes):
        return None
    held = [one.used_bytes for one in gpu.processes if one.pid != os.getpid()]
    return None if None in held else _gib(sum(used or 0 for used in held))


def names_of(processes: tuple[GpuProcess, ...], proc: Path = Path("/proc")) -> str | None:
    """`python (pid 4711) 57.6 GiB, …`: the largest first; a process that can't be seen here is its pid alone."""
    largest = sorted(processes, key=lambda one: one.used_bytes or 0, reverse=True)[:_NAMED_AT_MOST]
    return ", ".join(_name(one, proc) for one in largest) or None


def _name(process: GpuProcess, proc: Path) -> str:
    try:
        command = (proc / str(process.pid) / "comm").read_text(errors="replace").strip()
    except OSError:  # another container's, or gone
        command = ""
    who = f"{command} (pid {process.pid})" if command else f"pid {process.pid}"
    return who if process.used_bytes is None else f"{who} {process.used_bytes / 2**30:.1f} GiB"


def _gib(size: int) -> float:
    return round(size / 2**30, 2)
