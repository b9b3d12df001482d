"""When what is taken gets free: the earliest moment at which a job could start, and what it would start on."""

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from epochcast.jobs import Resources
from shared.queue import Wanted
from shared.seats import FreeHost, Seat, needed_bytes
from shared.vacancies import ENDING_S, Busy


@dataclass(slots=True)
class _Card:
    uuid: str
    free_bytes: int
    free_at: float


@dataclass(slots=True)
class _Host:
    name: str
    reads_store: bool
    free_slots: int
    cards: list[_Card]
    slot_ends: list[float] = field(default_factory=list)
    version: int = 0
    """Grows with every seat that is taken: what was found out before may be old."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a job could start first. `at`: Unix seconds, infinite where nobody knows. `cards`: uuids by host."""

    at: float
    cards: dict[str, frozenset[str]]


# When one host has room, and for how many GPUs it waits until then.
_Room = tuple[float, int]


class Timeline:
    """A fleet as it will get free. Seats are only ever taken, so that a host's room only comes later."""

    def __init__(self, now: float, free: Iterable[FreeHost], busy: Iterable[Busy]) -> None:
        self._now = now
        self._hosts = {
            host.name: _Host(
                host.name,
                host.reads_store,
                max(0, host.slots + host.kept_slots),
                [_Card(gpu.uuid, gpu.free_bytes, now) for gpu in host.gpus + host.kept],
            )
            for host in free
        }
        for one in busy:
            host = self._hosts.get(one.host)
            if host is not None and one.uuid is not None:
                host.cards.append(_Card(one.uuid, one.free_bytes, one.ends_at))
            elif host is not None:
                heapq.heappush(host.slot_ends, one.ends_at)
        self._lines: dict[tuple[int, int, bool], list[tuple[_Room, str, int]]] = {}

    def hold(self, seats: Iterable[Seat], bound_s: float | None) -> None:
        """Seats that were just given away, and are in no record yet: busy until the job's own bound."""
        ends_at = self._ends_at(self._now, bound_s)
        for seat in seats:
            host = self._hosts[seat.host.name]
            if seat.gpus:
                host.cards += [_Card(gpu.uuid, gpu.free_bytes, ends_at) for gpu in seat.gpus]
            else:
                heapq.heappush(host.slot_ends, ends_at)

    def first(self, wanted: Wanted, resumes: bool) -> Start | None:
        """The earliest start; of equal ones where the fewest GPUs are waited for, so that the choice stays the same
        from pass to pass. None: the hosts can't take the job, however long it waits."""
        resources = wanted.resources
        line = self._line(wanted, resumes)
        found: list[tuple[_Room, str, int]] = []
        while line and len(found) < resources.nodes:
            room, name, version = heapq.heappop(line)
            if version == self._hosts[name].version:
                found.append((room, name, version))
            elif (now := self._room(self._hosts[name], resources)) is not None:
                heapq.heappush(line, (now, name, self._hosts[name].version))
        for entry in found:
            heapq.heappush(line, entry)
        if len(found) < resources.nodes:
            return None
        cards = {name: frozenset(self._cards(self._hosts[name], resources)) for _, name, _ in found}
        return Start(max(room[0] for room, _, _ in found), cards)

    def take(self, start: Start, wanted: Wanted) -> None:
        """The job starts there and then."""
        ends_at = self._ends_at(start.at, wanted.bound_s)
        for name, uuids in start.cards.items():
            host = self._hosts[name]
            host.version += 1
            for card in host.cards:
                if card.uuid in uuids:
                    card.free_at = ends_at
            if not uuids:
                if host.free_slots > 0:
                    host.free_slots -= 1
                else:
                    heapq.heappop(host.slot_ends)
                heapq.heappush(host.slot_ends, ends_at)

    @staticmethod
    def _ends_at(begins_at: float, bound_s: float | None) -> float:
        return math.inf if bound_s is None else begins_at + bound_s + ENDING_S

    def _line(self, wanted: Wanted, resumes: bool) -> list[tuple[_Room, str, int]]:
        """The hosts by when they have room for one such member; made once for all jobs that need the same."""
        resources = wanted.resources
        key = (*wanted.room[1:], resumes)
        if key not in self._lines:
            line = [
                (room, host.name, host.version)
                for host in self._hosts.values()
                if (host.reads_store or not resumes) and (room := self._room(host, resources)) is not None
            ]
            heapq.heapify(line)
            self._lines[key] = line
        return self._lines[key]

    def _room(self, host: _Host, resources: Resources) -> _Room | None:
        if not resources.gpus:
            if host.free_slots > 0:
                return self._now, 0
            return (host.slot_ends[0], 1) if host.slot_ends else None
        needed = needed_bytes(resources)
        free_at = sorted(card.free_at for card in host.cards if card.free_bytes >= needed)[: resources.gpus]
        if len(free_at) < resources.gpus:
            return None
        return free_at[-1], sum(moment > self._now for moment in free_at)

    @staticmethod
    def _cards(host: _Host, resources: Resources) -> list[str]:
        needed = needed_bytes(resources)
        suiting = [card for card in host.cards if card.free_bytes >= needed]
        suiting.sort(key=lambda card: (card.free_at, card.free_bytes, card.uuid))
        return [card.uuid for card in suiting[: resources.gpus]]
