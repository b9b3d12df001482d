"""In words, why a job waits: what it needs, and what there is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from epochcast.jobs import Resources
from shared.seats import FreeHost, fits, needed_bytes, usable

KEPT = "what is free is kept for a job that needs more and has waited longer"
_HOSTS_NAMED = 5


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one host has when nothing runs there: slots, and its GPUs' memory in bytes (quarantined ones left out)."""

    slots: int
    gpu_bytes: Sequence[int] = field(default_factory=tuple)


def why_it_waits(resources: Resources, free: Sequence[FreeHost], capacity: Mapping[str, Capacity] | None = None) -> str:
    """`capacity`: of the hosts in `free`; with it the reason says so when the job would fit on none of them empty."""
    if not free:
        return "no host is ready"
    if resources.nodes > 1:
        return _why_several_wait(resources, free)
    if capacity is not None and not any(_would_fit(resources, one) for one in capacity.values()):
        return _why_it_never_fits(resources, capacity)
    if resources.gpus == 0:
        return "needs a CPU slot; all slots of all hosts are taken"
    best = max(free, key=lambda host: len(usable(resources, host)))
    return f"needs {_gpus(resources)}; the largest free is {len(usable(resources, best))} ({best.name})"


def _would_fit(resources: Resources, host: Capacity) -> bool:
    return host.slots > 0 if resources.gpus == 0 else _count(resources, host) >= resources.gpus


def _count(resources: Resources, host: Capacity) -> int:
    needed = needed_bytes(resources)
    return sum(size >= needed for size in host.gpu_bytes)


def _why_it_never_fits(resources: Resources, capacity: Mapping[str, Capacity]) -> str:
    if resources.gpus == 0:
        return "needs a CPU slot; no host that is ready offers one (EPOCHCAST_SLOTS)"
    # Of hosts with as many the first: the reason shouldn't change from pass to pass.
    best = min(capacity, key=lambda name: (-_count(resources, capacity[name]), name))
    count = _count(resources, capacity[best])
    has = f"the largest has {count} ({best})" if count else "none has one"
    memory = f" of {resources.gpu_memory_gib:g} GiB" if resources.gpu_memory_gib else ""
    wanted = "1 GPU" if resources.gpus == 1 else f"{resources.gpus} GPUs on one host"
    return f"needs {wanted}{memory}; no host that is ready has that, even empty: {has}"


def _gpus(resources: Resources) -> str:
    count = "1 GPU" if resources.gpus == 1 else f"{resources.gpus} GPUs on one host"
    return count + (f" with {resources.gpu_memory_gib:g} GiB free" if resources.gpu_memory_gib else "")


def _why_several_wait(resources: Resources, free: Sequence[FreeHost]) -> str:
    if resources.gpus == 0:
        each = "a free CPU slot"
    else:
        each = "1 GPU" if resources.gpus == 1 else f"{resources.gpus} GPUs"
        each += f" ({resources.gpu_memory_gib:g} GiB free)" if resources.gpu_memory_gib else ""
    fitting = [host.name for host in free if fits(resources, host)]
    named = ", ".join(fitting[:_HOSTS_NAMED]) + (", …" if len(fitting) > _HOSTS_NAMED else "")
    there = f"{len(fitting)} {'is' if len(fitting) == 1 else 'are'} free ({named})" if fitting else "none is free"
    return f"needs {resources.nodes} hosts with {each} each; {there}"
