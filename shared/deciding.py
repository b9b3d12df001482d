"""What one placing pass decides: who gets which seats, who keeps what for later, why the others wait and how long."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest

import sqlalchemy as sa

from shared.queue import Refused, Waiting, Wanted, waiting
from shared.seats import FreeHost, Seat, choose
from shared.tables import avoided_hosts, jobs, placements
from shared.timeline import Start, Timeline
from shared.vacancies import ENDING_S, busy, capacity, free_hosts
from shared.waiting_reason import KEPT, Capacity, why_it_waits

# Further back a forecast is a guess about guesses.
FORECAST_AT_ONCE = 100
# Reasons are written best first; beyond this many the others keep their old ones until a later pass.
EXPLAINED_AT_ONCE = 500
# A forecast that moved by less than this part of the time to go isn't written again.
_MOVED_PART, _MOVED_S = 0.1, 5.0


@dataclass(slots=True)
class Decided:
    """`is_cut_off`: the pass gave away as much as it may, and there may be more."""

    placed: list[tuple[Waiting, list[Seat]]] = field(default_factory=list)
    reasons: dict[str, list[int]] = field(default_factory=dict)
    """Whose reason changes, by the new one."""
    starts: dict[int, float | None] = field(default_factory=dict)
    """Whose expected start changes."""
    is_cut_off: bool = False

    @property
    def has_news(self) -> bool:
        return bool(self.placed or self.reasons or self.starts)


# Equal for jobs that fit equally well: the room they need, whether one resumes, whether it may borrow.
_Shape = tuple[tuple[int, int, int], bool, bool]


class Pass:
    """Reads when it is made and while it decides; writes nothing. Room only shrinks meanwhile, so that what did not fit
    once is not tried again for the next job that needs the same."""

    def __init__(
        self,
        connection: sa.Connection,
        now: float,
        running_per_owner: int | None,
        reserve_after_s: float,
        forecasts: bool,
        *,
        passed_over: frozenset[int] = frozenset(),
    ) -> None:
        self._connection = connection
        self._now = now
        self._running_per_owner = running_per_owner
        self._reserve_after_s = reserve_after_s
        self._forecasts = forecasts
        self._passed_over = passed_over
        self.free: list[FreeHost] = free_hosts(connection, now)
        self._avoided = _avoided(connection, now)
        self._running = _running_by_owner(connection) if running_per_owner is not None else {}
        self._whys: dict[_Shape, str] = {}
        self._capacity: dict[str, Capacity] | None = None
        self.reserved: Start | None = None
        """What is kept for the job that has waited too long, and when it is expected to start."""
        self.decided = Decided()
        self._explained = 0
        self.unplaced: list[Waiting] = []
        """Those who wait for room, best first."""

    def decide(self, placed_at_most: int) -> Decided:
        for one in waiting(self._connection, self._now):
            if one.id in self._passed_over:
                continue
            if len(self.decided.placed) == placed_at_most:
                self.decided.is_cut_off = True
                return self.decided
            self._judge(one)
        if self._forecasts:
            self._forecast()
        return self.decided

    def _judge(self, one: Waiting) -> None:
        wanted = one.wanted
        if isinstance(wanted, Refused):
            self._hold_back(one, f"can't be placed: {wanted.complaint}")
            return
        if (over := self.over_limit(one.owner)) is not None:
            self._hold_back(one, over)
            return
        shape = (wanted.room, one.resumes, self._ends_in_time(wanted))
        why = self._whys.get(shape)
        if why is None:
            seats = choose(
                wanted.resources,
                self.free,
                self._avoided.get(one.id, frozenset()),
                resumes=one.resumes,
                borrows=shape[2],
            )
            if seats:
                for seat in seats:
                    seat.take()
                self._running[one.owner] = self._running.get(one.owner, 0) + 1
                self.decided.placed.append((one, seats))
                return
            why = self._whys[shape] = self._why(wanted, one.resumes)
        if self.reserved is None and self._now - one.queued_at >= self._reserve_after_s:
            why = self._reserve(one, wanted, why)
        self.unplaced.append(one)
        self._explain(one, why)

    def over_limit(self, owner: str) -> str | None:
        """Why no further job of this owner is placed, if none is."""
        running, limit = self._running.get(owner, 0), self._running_per_owner
        if limit is None or running < limit:
            return None
        return f"{owner} has {running} running jobs; the limit per owner is {limit}"

    def _ends_in_time(self, wanted: Wanted) -> bool:
        """Whether a job that starts now is gone before the one for which room is kept could start."""
        if self.reserved is None or self.reserved.at == math.inf or wanted.bound_s is None:
            return False
        return self._now + wanted.bound_s + ENDING_S <= self.reserved.at

    def _reserve(self, one: Waiting, wanted: Wanted, why: str) -> str:
        """Keeps for it what is free of the seats that it can have first. Who comes behind takes none of them but for a
        time that surely ends before. Returns its reason."""
        start = self.timeline().first(wanted, one.resumes)
        if start is None:
            return why  # it fits on no host that is here: nothing would be gained
        self.reserved = start
        for host in self.free:
            uuids = start.cards.get(host.name)
            if uuids is None:
                continue
            if wanted.resources.gpus == 0:
                kept = min(1, host.slots)
                host.slots, host.kept_slots = host.slots - kept, kept
            else:
                host.kept = [gpu for gpu in host.gpus if gpu.uuid in uuids]
                host.gpus = [gpu for gpu in host.gpus if gpu.uuid not in uuids]
        names = sorted(start.cards)
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        return f"{why}; room is kept for it ({shown})"

    def timeline(self) -> Timeline:
        """From what is free now, what runs, and what this pass has given away."""
        line = Timeline(self._now, self.free, busy(self._connection, self._now))
        for one, seats in self.decided.placed:
            assert isinstance(one.wanted, Wanted)
            line.hold(seats, one.wanted.bound_s)
        return line

    def _why(self, wanted: Wanted, resumes: bool) -> str:
        if self.reserved is not None and choose(wanted.resources, self.free, resumes=resumes, borrows=True):
            return KEPT
        if self._capacity is None:
            self._capacity = capacity(self._connection, {host.name for host in self.free})
        offered = [host for host in self.free if host.reads_store] if resumes else self.free
        return why_it_waits(wanted.resources, offered, self._capacity)

    def _hold_back(self, one: Waiting, reason: str) -> None:
        """It doesn't wait for room, so nothing that runs says when it starts."""
        self._explain(one, reason)
        if self._forecasts and one.expected_start_at is not None:
            self.decided.starts[one.id] = None

    def _explain(self, one: Waiting, reason: str) -> None:
        if reason != one.pending_reason and self._explained < EXPLAINED_AT_ONCE:
            self._explained += 1
            self.decided.reasons.setdefault(reason, []).append(one.id)

    def _forecast(self) -> None:
        """When those at the head of the queue will start if each takes the first seats that suit it, in order."""
        starts = _starts(self.timeline(), self.unplaced[:FORECAST_AT_ONCE]) if self.unplaced else []
        for one, at in zip_longest(self.unplaced, starts):
            if self._has_moved(one.expected_start_at, at):
                self.decided.starts[one.id] = at

    def start_behind(self, wanted: Wanted, priority: int) -> float | None:
        """When a job that is submitted now will start. After `decide`."""
        ahead = [one for one in self.unplaced if one.priority >= priority]
        if len(ahead) > FORECAST_AT_ONCE:
            return None
        line = self.timeline()
        _starts(line, ahead)
        start = line.first(wanted, resumes=False)
        return None if start is None or start.at == math.inf else start.at

    def _has_moved(self, old: float | None, new: float | None) -> bool:
        if old is None or new is None:
            return old is not new
        return abs(new - old) > max(_MOVED_S, _MOVED_PART * (new - self._now))


def _starts(line: Timeline, queue: Iterable[Waiting]) -> list[float | None]:
    """When each starts, None where nobody knows; who starts at a known moment keeps others from those seats."""
    found: list[float | None] = []
    for one in queue:
        assert isinstance(one.wanted, Wanted)
        start = line.first(one.wanted, one.resumes)
        if start is None or start.at == math.inf:
            found.append(None)
        else:
            line.take(start, one.wanted)
            found.append(start.at)
    return found


def _avoided(connection: sa.Connection, now: float) -> dict[int, frozenset[str]]:
    rows = connection.execute(sa.select(avoided_hosts).where(avoided_hosts.c.until > now)).all()
    found: dict[int, frozenset[str]] = {}
    for row in rows:
        found[row.job_id] = found.get(row.job_id, frozenset()) | {row.host}
    return found


def _running_by_owner(connection: sa.Connection) -> dict[str, int]:
    rows = connection.execute(
        sa.select(jobs.c.owner, sa.func.count())
        .where(sa.exists().where(placements.c.job_id == jobs.c.id))
        .group_by(jobs.c.owner)
    )
    return {owner: int(count) for owner, count in rows}
