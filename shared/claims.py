"""The claim: how a supervisor comes to own a placed job, and what it then has."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from epochcast.jobs import Status, TrainingJob, TrainingJobSpec
from shared.archive import transition_entry
from shared.database import Database
from shared.event_log import Entry
from shared.rows import Row, hosts_of, training_job
from shared.tables import artifacts, attempts, gpus, jobs, placements, transition_events
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
    """Stored events that this supervisor ships before anything else; the last one is its own claim."""

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
    database: Database, job_id: int, host: str, lease_s: float, threads: int, identity: ProcessIdentity
) -> Claim | None:
    """Claims a placed job for `host` with one conditional UPDATE; None: somebody else has it, or it was stopped.

    `threads`: CPU threads of a job, divided among its processes and kept in the spec at the first claim so that every
    later attempt computes the same. `identity`: the supervisor that claims.
    """
    with database.write() as connection:
        # Locked first: the placement must be there after whoever was about to release it has done so.
        row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()
        placed = sa.exists().where(placements.c.job_id == jobs.c.id, placements.c.host == host)
        if row is None or row.status != Status.QUEUED:
            return None
        now = database.time(connection)
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
        # In the host's own order: a process takes the GPU of its local rank.
        cards = sa.select(gpus.c.uuid).where(gpus.c.job_id == job_id).order_by(gpus.c.host, gpus.c.index)
        held = list(connection.execute(cards).scalars())
        checkpoints = _checkpoints(connection, new)
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
                resumed_epoch=checkpoints[0].epoch if checkpoints else None,
            )
        )
        job = training_job(new, hosts_of(connection, [job_id]).get(job_id, []))
        return Claim(job, tuple(held), checkpoints, new.restarts_used, _unannounced(connection, new))


def _with_threads(spec: dict[str, Any], threads: int) -> dict[str, Any]:
    if spec.get("threads"):
        return spec
    processes = TrainingJobSpec.model_validate(spec).resources.local_processes
    return {**spec, "threads": max(1, threads // processes)}


def _checkpoints(connection: sa.Connection, row: Row) -> tuple[Checkpoint, ...]:
    if row.checkpoint_id is None:
        return ()
    found = connection.execute(
        sa.select(artifacts)
        .where(artifacts.c.job_id == row.id, artifacts.c.kind == "checkpoint")
        .where(artifacts.c.id > row.checkpoints_after, artifacts.c.id <= row.checkpoint_id)
        .order_by(artifacts.c.id.desc())
    )
    return tuple(Checkpoint(a.id, a.key, a.epoch, a.step, a.bytes, a.sha256) for a in found)


def _unannounced(connection: sa.Connection, row: Row) -> tuple[Entry, ...]:
    table = transition_events
    rows = connection.execute(
        sa.select(table)
        .where(table.c.job_id == row.id, sa.not_(table.c.announced))
        .order_by(table.c.generation, table.c.seq)
    )
    return tuple(transition_entry(event, row.owner) for event in rows)
