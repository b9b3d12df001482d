"""The claim: how a supervisor comes to own a placed job, and what it then has."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from epochcast.jobs import Status, TrainingJob, TrainingJobSpec
from shared.archive import transition_entry
from shared.database import Database
from shared.event_log import Entry
from shared.rows import Row, hosts_of, nodes_of, training_job
from shared.tables import artifacts, attempts, gpus, jobs, members, placements, transition_events
from shared.transitions import Fence, apply


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint in the artifact store."""

    artifact_id: int
    key: str
    epoch: int | None
    step: int | None
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Membership:
    """One host's place in a job on several. `generation`: the job's when the place was claimed; `token` tells this
    claim from a later one of the same place."""

    job_id: int
    generation: int
    member: int
    nodes: int
    host: str
    token: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a supervisor owns after its claim, until its lease runs out."""

    job: TrainingJob
    gpus: tuple[str, ...]
    """UUIDs of the reserved GPUs."""
    checkpoints: tuple[Checkpoint, ...]
    """Committed checkpoints up to the pointer, newest first."""
    restarts_used: int
    """How many of `max_restarts` are spent."""
    unannounced: tuple[Entry, ...]
    """Stored events that this supervisor ships before anything else; the last one is its own claim. None has a member
    beyond 0: member 0 is the only writer of events."""
    membership: Membership | None = None
    """This host's place, of a job on several."""
    master: tuple[str, int] | None = None
    """Where rank 0 listens, if that was decided with the claim."""

    @property
    def fence(self) -> Fence:
        return Fence(self.job.job_id, self.job.generation, Status.RUNNING)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of one boot of one machine; `started` in clock ticks since boot."""

    boot_id: str
    pid_namespace: str
    pid: int
    started: int


def claim(
    database: Database,
    job_id: int,
    host: str,
    lease_s: float,
    threads: int,
    identity: ProcessIdentity,
    membership: Membership | None = None,
    master: tuple[str, int] | None = None,
) -> Claim | None:
    """Claims a placed job for `host` with one conditional UPDATE; None: somebody else has it, or it was stopped.

    `threads`: CPU threads of a job, divided among its processes and kept in the spec at the first claim so that every
    later attempt computes the same. `identity`: the supervisor that claims. A job on several hosts is claimed by its
    member 0 (`membership`), and only when every member waits for it; `master`: where its rank 0 will listen.
    """
    with database.write() as connection:
        # Locked first: the placement must be there after whoever was about to release it has done so.
        row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()
        placed = sa.exists().where(placements.c.job_id == jobs.c.id, placements.c.host == host)
        if row is None or row.status != Status.QUEUED or (nodes_of(row.spec) > 1) is (membership is None):
            return None
        now = database.time(connection)
        if membership is not None and not all_ready(connection, membership, row.generation, now):
            return None
        values = {
            "status": Status.RUNNING,
            "generation": row.generation + 1,
            "attempt": row.attempt + 1,
            "lease_until": now + lease_s,
            "started_at": row.started_at if row.started_at is not None else now,
            "pending_reason": None,
            "spec": _with_threads(row.spec, threads),
        }
        claimable = sa.and_(placed, sa.not_(jobs.c.stop_requested), jobs.c.not_before <= now)
        fence = Fence(job_id, row.generation, Status.QUEUED)
        new = apply(connection, fence, values, now, extra=claimable)
        if new is None:
            return None
        held = held_gpus(connection, job_id, host)
        checkpoints = committed_checkpoints(connection, new)
        if membership is not None and master is not None:
            _start_members(connection, membership, new, now + lease_s, master)
        connection.execute(
            attempts.insert().values(
                job_id=job_id,
                number=new.attempt,
                generation=new.generation,
                host=host,
                gpus=held,
                started_at=now,
                boot_id=identity.boot_id,
                pid_namespace=identity.pid_namespace,
                supervisor_pid=identity.pid,
                supervisor_started=identity.started,
            )
        )
        job = training_job(new, hosts_of(connection, [job_id]).get(job_id, []))
        unannounced = _unannounced(connection, new)
        return Claim(job, tuple(held), checkpoints, new.restarts_used, unannounced, membership, master)


def all_ready(connection: sa.Connection, membership: Membership, generation: int, now: float) -> bool:
    """Whether every place of a job is claimed under this generation, and that of member 0 by `membership`."""
    ready = connection.execute(
        sa.select(members.c.member, members.c.token)
        .where(members.c.job_id == membership.job_id, members.c.generation == generation)
        .where(members.c.attempt.is_(None), members.c.lease_until >= now)
        .order_by(members.c.member)
        .with_for_update()
    ).all()
    places = [row.member for row in ready]
    return places == list(range(membership.nodes)) and ready[0].token == membership.token


def _start_members(
    connection: sa.Connection, membership: Membership, job: Row, lease_until: float, master: tuple[str, int]
) -> None:
    """The members learn from their own rows that the job is claimed, and start."""
    address, port = master
    waiting = sa.and_(members.c.job_id == job.id, members.c.generation == membership.generation)
    started = members.update().where(waiting).values(generation=job.generation, attempt=job.attempt)
    connection.execute(started)
    zero = sa.and_(members.c.job_id == job.id, members.c.generation == job.generation, members.c.member == 0)
    connection.execute(members.update().where(zero).values(address=address, port=port, lease_until=lease_until))


def held_gpus(connection: sa.Connection, job_id: int, host: str) -> list[str]:
    """UUIDs of the GPUs that a job holds on a host, in the host's own order: a process takes that of its local rank."""
    mine = sa.and_(gpus.c.job_id == job_id, gpus.c.host == host)
    return list(connection.execute(sa.select(gpus.c.uuid).where(mine).order_by(gpus.c.index)).scalars())


def committed_checkpoints(connection: sa.Connection, row: Row) -> tuple[Checkpoint, ...]:
    """Those that an attempt may resume from: what the attempt itself commits is none of them."""
    if row.checkpoint_id is None:
        return ()
    found = connection.execute(
        sa.select(artifacts)
        .where(artifacts.c.job_id == row.id, artifacts.c.kind == "checkpoint")
        .where(artifacts.c.generation < row.generation)
        .where(artifacts.c.id > row.checkpoints_after, artifacts.c.id <= row.checkpoint_id)
        .order_by(artifacts.c.id.desc())
    )
    return tuple(Checkpoint(a.id, a.key, a.epoch, a.step, a.bytes, a.sha256) for a in found)


def _with_threads(spec: dict[str, Any], threads: int) -> dict[str, Any]:
    if spec.get("threads"):
        return spec
    processes = TrainingJobSpec.stored(spec).resources.local_processes
    return {**spec, "threads": max(1, threads // processes)}


def _unannounced(connection: sa.Connection, row: Row) -> tuple[Entry, ...]:
    table = transition_events
    rows = connection.execute(
        sa.select(table)
        .where(table.c.job_id == row.id, sa.not_(table.c.announced))
        .order_by(table.c.generation, table.c.seq)
    )
    return tuple(transition_entry(event, row.owner) for event in rows)
