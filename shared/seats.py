"""Which free hosts and GPUs suit a job now."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from epochcast.jobs import Resources


@dataclass(slots=True)
class FreeGpu:
    uuid: str
    free_bytes: int
    model: str


@dataclass(slots=True)
class FreeHost:
    """What a reachable host has left during a pass; `gpus` by free bytes, least first.

    `kept_slots` and `kept` are free too, but kept for a job that has waited long: for others only if they end in time.
    """

    name: str
    slots: int
    reads_store: bool
    gpus: list[FreeGpu] = field(default_factory=list)
    kept_slots: int = 0
    kept: list[FreeGpu] = field(default_factory=list)

    def slots_for(self, borrows: bool) -> int:
        return self.slots + self.kept_slots if borrows else self.slots

    def gpus_for(self, borrows: bool) -> list[FreeGpu]:
        return sorted(self.gpus + self.kept, key=_free_bytes) if borrows and self.kept else self.gpus


@dataclass(frozen=True, slots=True)
class Seat:
    """One host of a placement, with the GPUs that the job gets there."""

    host: FreeHost
    gpus: tuple[FreeGpu, ...]

    def take(self) -> None:
        """The host has it no longer."""
        if not self.gpus and self.host.slots > 0:
            self.host.slots -= 1
        elif not self.gpus:
            self.host.kept_slots -= 1
        else:
            self.host.gpus = [gpu for gpu in self.host.gpus if gpu not in self.gpus]
            self.host.kept = [gpu for gpu in self.host.kept if gpu not in self.gpus]


def choose(
    resources: Resources,
    free: Sequence[FreeHost],
    avoided: frozenset[str] = frozenset(),
    *,
    resumes: bool = False,
    borrows: bool = False,
) -> list[Seat]:
    """A seat on each of the hosts that the job needs; empty when they don't all fit now.

    A host that this job should avoid (it didn't claim in time) is taken only when no other fits. The hosts of one job
    get GPUs of one model if they can: the slowest sets the pace of all. `borrows`: also what is kept for another job.
    """

    # Tightest fit for GPU jobs keeps large hosts free; the emptiest host for CPU jobs spreads their load.
    def order(host: FreeHost) -> tuple[bool, int, str]:
        room = len(host.gpus) if resources.gpus else -host.slots_for(borrows)
        return host.name in avoided, room, host.name

    fitting = [host for host in free if fits(resources, host, borrows) and (host.reads_store or not resumes)]
    if len(fitting) < resources.nodes:
        return []
    if resources.nodes == 1:
        fitting = [min(fitting, key=order)]
    else:
        fitting.sort(key=order)
    if resources.nodes > 1 and resources.gpus:
        equal = [
            seats for model in _models(fitting, borrows) if (seats := _of_model(resources, fitting, model, borrows))
        ]
        if equal:
            return min(equal, key=lambda seats: sum(seat.host.name in avoided for seat in seats))
    return [_seat(resources, host, usable(resources, host, borrows)) for host in fitting[: resources.nodes]]


def _models(hosts: list[FreeHost], borrows: bool) -> list[str]:
    """The GPU models there are, those of the hosts that come first first."""
    return list(dict.fromkeys(gpu.model for host in hosts for gpu in host.gpus_for(borrows)))


def _of_model(resources: Resources, fitting: list[FreeHost], model: str, borrows: bool) -> list[Seat]:
    """The first hosts that have enough GPUs of this model; empty when they are too few."""
    seats = []
    for host in fitting:
        cards = [gpu for gpu in usable(resources, host, borrows) if gpu.model == model]
        if len(cards) >= resources.gpus:
            seats.append(_seat(resources, host, cards))
            if len(seats) == resources.nodes:
                return seats
    return []


def _seat(resources: Resources, host: FreeHost, cards: list[FreeGpu]) -> Seat:
    if not resources.gpus:
        return Seat(host, ())
    # What is kept last: a job that ends later than it said then delays nobody.
    return Seat(host, tuple(sorted(cards, key=lambda gpu: (gpu in host.kept, gpu.free_bytes))[: resources.gpus]))


def fits(resources: Resources, host: FreeHost, borrows: bool = False) -> bool:
    """Whether the host could take the job, or one member of it, now."""
    count = resources.gpus
    if count == 0:
        return host.slots_for(borrows) > 0
    cards = host.gpus_for(borrows)
    return len(cards) >= count and cards[-count].free_bytes >= needed_bytes(resources)


def usable(resources: Resources, host: FreeHost, borrows: bool = False) -> list[FreeGpu]:
    """The host's free GPUs that have the memory which the job names."""
    needed = needed_bytes(resources)
    return [gpu for gpu in host.gpus_for(borrows) if gpu.free_bytes >= needed]


def needed_bytes(resources: Resources) -> int:
    """Of memory, free on each GPU."""
    return int((resources.gpu_memory_gib or 0) * 2**30)


def _free_bytes(gpu: FreeGpu) -> int:
    return gpu.free_bytes
