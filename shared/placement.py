"""Which queued job goes to which host and GPUs: one pass, one transaction, all of a job's resources or none."""

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from epochcast.jobs import Resources, Status, TrainingJobSpec
from shared.database import Database
from shared.fleet import UNREACHABLE_AFTER_S
from shared.tables import avoided_hosts, gpus, hosts, jobs, placements

FIRST_POKE_S = 5.0
_PLACING_LOCK = 6024002


@dataclass(slots=True)
class FreeGpu:
    uuid: str
    free_bytes: int


@dataclass(slots=True)
class FreeHost:
    """What a reachable host has left during a pass."""

    name: str
    slots: int
    reads_store: bool
    gpus: list[FreeGpu] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Placed:
    job_id: int
    host: str


def place(database: Database, *, running_per_owner: int | None = None, limit: int = 1000) -> list[Placed]:
    """Places what fits now, best job first (priority, then age), and writes why the others wait."""
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
        free = free_hosts(connection, now)
        avoided = _avoided(connection, now)
        busy = _running_by_owner(connection) if running_per_owner is not None else {}
        placed = []
        for row in waiting:
            resources = TrainingJobSpec.model_validate(row.spec).resources
            if running_per_owner is not None and busy.get(row.owner, 0) >= running_per_owner:
                reason = f"{row.owner} has {busy[row.owner]} running jobs; the limit per owner is {running_per_owner}"
                _explain(connection, row, reason)
                continue
            chosen = choose(resources, free, avoided.get(row.id, frozenset()), row.checkpoint_id is not None)
            if chosen is None:
                _explain(connection, row, why_it_waits(resources, free))
                continue
            _reserve(connection, row.id, chosen, resources, now)
            busy[row.owner] = busy.get(row.owner, 0) + 1
            placed.append(Placed(row.id, chosen.name))
        return placed


def _waiting(connection: sa.Connection, now: float, limit: int) -> list[Any]:
    unplaced = sa.not_(sa.exists().where(placements.c.job_id == jobs.c.id))
    return list(
        connection.execute(
            sa.select(jobs.c.id, jobs.c.owner, jobs.c.spec, jobs.c.checkpoint_id, jobs.c.pending_reason)
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
            found[card.host].gpus.append(FreeGpu(card.uuid, card.total_bytes - card.used_bytes))
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


def choose(resources: Resources, free: list[FreeHost], avoided: frozenset[str], resumes: bool) -> FreeHost | None:
    """The host for one job, its resources already taken from `free`; None when none fits now.

    A host that this job should avoid (it didn't claim in time) is taken only when no other fits.
    """
    fitting = [host for host in free if _fits(resources, host) and (host.reads_store or not resumes)]
    if not fitting:
        return None
    # Tightest fit for GPU jobs keeps large hosts free; the emptiest host for CPU jobs spreads their load.
    fitting.sort(key=lambda host: (host.name in avoided, len(host.gpus) if resources.gpus else -host.slots, host.name))
    return fitting[0]


def _fits(resources: Resources, host: FreeHost) -> bool:
    if resources.gpus == 0:
        return host.slots > 0
    return len(_usable(resources, host)) >= resources.gpus


def _usable(resources: Resources, host: FreeHost) -> list[FreeGpu]:
    needed = int((resources.gpu_memory_gib or 0) * 2**30)
    return [gpu for gpu in host.gpus if gpu.free_bytes >= needed]


def _reserve(connection: sa.Connection, job_id: int, host: FreeHost, resources: Resources, now: float) -> None:
    taken: list[FreeGpu] = []
    if resources.gpus:
        taken = sorted(_usable(resources, host), key=lambda gpu: gpu.free_bytes)[: resources.gpus]
        host.gpus = [gpu for gpu in host.gpus if gpu not in taken]
    else:
        host.slots -= 1
    uuids = [gpu.uuid for gpu in taken]
    connection.execute(
        placements.insert().values(
            job_id=job_id, member=0, host=host.name, gpus=uuids, placed_at=now, pokes=0, next_poke_at=now
        )
    )
    if uuids:
        connection.execute(gpus.update().where(gpus.c.uuid.in_(uuids)).values(job_id=job_id))
    connection.execute(jobs.update().where(jobs.c.id == job_id).values(pending_reason=None))


def why_it_waits(resources: Resources, free: list[FreeHost]) -> str:
    """In words, what the job needs and what there is."""
    if not free:
        return "no host is ready"
    if resources.gpus == 0:
        return "needs a CPU slot; all slots of all hosts are taken"
    best = max(free, key=lambda host: len(_usable(resources, host)))
    with_memory = f" with {resources.gpu_memory_gib:g} GiB free" if resources.gpu_memory_gib else ""
    count = "1 GPU" if resources.gpus == 1 else f"{resources.gpus} GPUs on one host"
    return f"needs {count}{with_memory}; the largest free is {len(_usable(resources, best))} ({best.name})"


def _explain(connection: sa.Connection, row: Any, reason: str) -> None:
    if row.pending_reason != reason:
        connection.execute(
            jobs.update().where(jobs.c.id == row.id, jobs.c.status == Status.QUEUED).values(pending_reason=reason)
        )
