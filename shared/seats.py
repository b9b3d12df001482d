"""Which free hosts and GPUs suit a job, and in words why none do."""

from dataclasses import dataclass, field

from epochcast.jobs import Resources

_HOSTS_NAMED = 5


@dataclass(slots=True)
class FreeGpu:
    uuid: str
    free_bytes: int
    model: str


@dataclass(slots=True)
class FreeHost:
    """What a reachable host has left during a pass."""

    name: str
    slots: int
    reads_store: bool
    gpus: list[FreeGpu] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Seat:
    """One host of a placement, with the GPUs that the job gets there."""

    host: FreeHost
    gpus: tuple[FreeGpu, ...]


def choose(resources: Resources, free: list[FreeHost], avoided: frozenset[str], resumes: bool) -> list[Seat]:
    """A seat on each of the hosts that the job needs; empty when they don't all fit now.

    A host that this job should avoid (it didn't claim in time) is taken only when no other fits. The hosts of one job
    get GPUs of one model if they can: the slowest sets the pace of all.
    """
    fitting = [host for host in free if _fits(resources, host) and (host.reads_store or not resumes)]
    # Tightest fit for GPU jobs keeps large hosts free; the emptiest host for CPU jobs spreads their load.
    fitting.sort(key=lambda host: (host.name in avoided, len(host.gpus) if resources.gpus else -host.slots, host.name))
    if len(fitting) < resources.nodes:
        return []
    if resources.nodes > 1 and resources.gpus:
        equal = [seats for model in _models(fitting) if (seats := _seats_of_model(resources, fitting, model))]
        if equal:
            return min(equal, key=lambda seats: sum(seat.host.name in avoided for seat in seats))
    return [_seat(resources, host, _usable(resources, host)) for host in fitting[: resources.nodes]]


def _models(hosts: list[FreeHost]) -> list[str]:
    """The GPU models there are, those of the hosts that come first first."""
    return list(dict.fromkeys(gpu.model for host in hosts for gpu in host.gpus))


def _seats_of_model(resources: Resources, fitting: list[FreeHost], model: str) -> list[Seat]:
    """The first hosts that have enough GPUs of this model; empty when they are too few."""
    seats = []
    for host in fitting:
        cards = [gpu for gpu in _usable(resources, host) if gpu.model == model]
        if len(cards) >= resources.gpus:
            seats.append(_seat(resources, host, cards))
    return seats[: resources.nodes] if len(seats) >= resources.nodes else []


def _seat(resources: Resources, host: FreeHost, cards: list[FreeGpu]) -> Seat:
    return Seat(host, tuple(sorted(cards, key=lambda gpu: gpu.free_bytes)[: resources.gpus]))


def _fits(resources: Resources, host: FreeHost) -> bool:
    if resources.gpus == 0:
        return host.slots > 0
    return len(_usable(resources, host)) >= resources.gpus


def _usable(resources: Resources, host: FreeHost) -> list[FreeGpu]:
    needed = int((resources.gpu_memory_gib or 0) * 2**30)
    return [gpu for gpu in host.gpus if gpu.free_bytes >= needed]


def why_it_waits(resources: Resources, free: list[FreeHost]) -> str:
    """In words, what the job needs and what there is."""
    if not free:
        return "no host is ready"
    if resources.nodes > 1:
        return _why_several_wait(resources, free)
    if resources.gpus == 0:
        return "needs a CPU slot; all slots of all hosts are taken"
    best = max(free, key=lambda host: len(_usable(resources, host)))
    with_memory = f" with {resources.gpu_memory_gib:g} GiB free" if resources.gpu_memory_gib else ""
    count = "1 GPU" if resources.gpus == 1 else f"{resources.gpus} GPUs on one host"
    return f"needs {count}{with_memory}; the largest free is {len(_usable(resources, best))} ({best.name})"


def _why_several_wait(resources: Resources, free: list[FreeHost]) -> str:
    if resources.gpus == 0:
        each = "a free CPU slot"
    else:
        each = "1 GPU" if resources.gpus == 1 else f"{resources.gpus} GPUs"
        each += f" ({resources.gpu_memory_gib:g} GiB free)" if resources.gpu_memory_gib else ""
    fitting = [host.name for host in free if _fits(resources, host)]
    named = ", ".join(fitting[:_HOSTS_NAMED]) + (", …" if len(fitting) > _HOSTS_NAMED else "")
    there = f"{len(fitting)} {'is' if len(fitting) == 1 else 'are'} free ({named})" if fitting else "none is free"
    return f"needs {resources.nodes} hosts with {each} each; {there}"
