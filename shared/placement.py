"""Which queued job goes to which hosts and GPUs: one pass, one transaction, all of a job's resources or none.

All or none is also why two jobs that want the same hosts can't wait for each other: none holds a part of what it needs.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import structlog
from pydantic import ValidationError

from epochcast.jobs import Status, TrainingJobSpec
from shared.database import Database, is_outage
from shared.fleet import UNREACHABLE_AFTER_S
from shared.seats import FreeGpu, FreeHost, Seat, choose, why_it_waits
from shared.tables import avoided_hosts, gpus, hosts, jobs, placements

logger = structlog.get_logger(__name__)

FIRST_POKE_S = 5.0
_PLACING_LOCK = 6024002


@dataclass(frozen=True, slots=True)
class Placed:
    """One host of a job that was placed; a job on several hosts has one for each."""

    job_id: int
    host: str


def place(database: Database, *, running_per_owner: int | None = None, limit: int = 1000) -> list[Placed]:
    """Places what fits now, best job first (priority, then age), and writes why the others wait.

    The first poke of each that is returned is taken with its place, and is the caller's to send: a transaction less
    on the way of every job.
    """
    with database.read() as connection:
        # Most passes find nothing: they must not take SQLite's only write lock.
        if not _waiting(connection, database.time(connection), 1):
            return []
    with database.write() as connection:
        if not database.is_sqlite:
            # Held for this pass only; a dispatcher that was woken waits for it (at most its statement timeout).
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_PLACING_LOCK)))
        now = database.time(connection)
        waiting = _waiting(connection, now, limit)
        if not waiting:
            return []
        return _Pass(connection, now, running_per_owner).place_all(waiting)


class _Pass:
    """What is free while jobs are placed, one after the other. One that can't be judged keeps no other waiting."""

    def __init__(self, connection: sa.Connection, now: float, running_per_owner: int | None) -> None:
        self._connection = connection
        self._now = now
        self._running_per_owner = running_per_owner
        self._free = free_hosts(connection, now)
        self._avoided = _avoided(connection, now)
        self._busy = _running_by_owner(connection) if running_per_owner is not None else {}

    def place_all(self, waiting: list[Any]) -> list[Placed]:
        placed = []
        for row in waiting:
            try:
                seats = self._place(row)
            except Exception as error:
                if isinstance(error, sa.exc.DBAPIError) and is_outage(error):
                    raise
                reason = f"can't be placed: {_complaint(error)}"
                if reason != row.pending_reason:  # said once, not at every pass
                    logger.exception("job can't be placed", job_id=row.id)
                _explain(self._connection, row, reason)
                continue
            placed += [Placed(row.id, seat.host.name) for seat in seats]
        return placed

    def _place(self, row: Any) -> list[Seat]:
        resources = TrainingJobSpec.model_validate(row.spec).resources
        running, limit = self._busy.get(row.owner, 0), self._running_per_owner
        if limit is not None and running >= limit:
            _explain(self._connection, row, f"{row.owner} has {running} running jobs; the limit per owner is {limit}")
            return []
        avoided = self._avoided.get(row.id, frozenset())
        chosen = choose(resources, self._free, avoided, row.checkpoint_id is not None)
        if not chosen:
            _explain(self._connection, row, why_it_waits(resources, self._free))
            return []
        if not _reserve(self._connection, row, chosen, self._now):
            return []
        self._busy[row.owner] = running + 1
        return chosen


def _complaint(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fields = sorted({".".join(map(str, problem["loc"])) for problem in error.errors()})
        return f"its spec is refused ({', '.join(fields)})"
    return f"{type(error).__name__}: {error}"[:500]


def _waiting(connection: sa.Connection, now: float, limit: int) -> list[Any]:
    unplaced = sa.not_(sa.exists().where(placements.c.job_id == jobs.c.id))
    return list(
        connection.execute(
            sa.select(
                jobs.c.id, jobs.c.generation, jobs.c.owner, jobs.c.spec, jobs.c.checkpoint_id, jobs.c.pending_reason
            )
            .where(jobs.c.status == Status.QUEUED, sa.not_(jobs.c.stop_requested), jobs.c.not_before <= now, unplaced)
            .order_by(jobs.c.priority.desc(), jobs.c.queued_at, jobs.c.id)
            .limit(limit)
        )
    )


def free_hosts(connection: sa.Connection, now: float) -> list[FreeHost]:
    """Reachable hosts that take jobs, with their free slots and GPUs."""
    alive = connection.execute(
        sa.select(hosts)
        .where(hosts.c.heartbeat_at >= now - UNREACHABLE_AFTER_S, sa.not_(hosts.c.draining))
        .order_by(hosts.c.name)
    ).all()
    found = {row.name: FreeHost(row.name, row.slots, row.reads_store) for row in alive}
    for placement in connection.execute(sa.select(placements.c.host, placements.c.gpus)):
        if placement.host in found and not placement.gpus:
            found[placement.host].slots -= 1
    available = sa.and_(gpus.c.job_id.is_(None), sa.not_(gpus.c.quarantined))
    for card in connection.execute(sa.select(gpus).where(available).order_by(gpus.c.index)):
        if card.host in found:
            found[card.host].gpus.append(FreeGpu(card.uuid, card.total_bytes - card.used_bytes, card.name))
    return list(found.values())


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


def _reserve(connection: sa.Connection, row: Any, seats: list[Seat], now: float) -> bool:
    """Gives a job its hosts and takes that from them. False: it was stopped or changed since the pass read it."""
    with connection.begin_nested():
        # The job's row first: whoever ends the job holds it, and releases what it finds placed by then.
        if connection.execute(jobs.update().where(_still_waits(row)).values(pending_reason=None)).rowcount == 0:
            return False
        for member, seat in enumerate(seats):
            uuids = [gpu.uuid for gpu in seat.gpus]
            place_of = {"job_id": row.id, "member": member, "host": seat.host.name, "gpus": uuids}
            connection.execute(
                placements.insert().values(**place_of, placed_at=now, pokes=1, next_poke_at=now + FIRST_POKE_S)
            )
            if uuids:
                connection.execute(gpus.update().where(gpus.c.uuid.in_(uuids)).values(job_id=row.id))
    for seat in seats:
        if seat.gpus:
            seat.host.gpus = [gpu for gpu in seat.host.gpus if gpu not in seat.gpus]
        else:
            seat.host.slots -= 1
    return True


def _still_waits(row: Any) -> sa.ColumnElement[bool]:
    queued = sa.and_(jobs.c.id == row.id, jobs.c.generation == row.generation, jobs.c.status == Status.QUEUED)
    return sa.and_(queued, sa.not_(jobs.c.stop_requested))


def _explain(connection: sa.Connection, row: Any, reason: str) -> None:
    if row.pending_reason != reason:
        with connection.begin_nested():
            connection.execute(jobs.update().where(_still_waits(row)).values(pending_reason=reason))
