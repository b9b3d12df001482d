"""The one place where a job's status changes: a fenced UPDATE and its event, in the same transaction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from epochcast.events import Complete, Error, EventId, Progress, encode
from epochcast.jobs import Status, TrainingJob
from shared.rows import Row, hosts_of, progress_message, training_job
from shared.tables import attempts, gpus, jobs, members, placements, transition_events

Terminal = Progress | Complete | Error
MakeEvent = Callable[[TrainingJob, EventId], Terminal]


@dataclass(frozen=True, slots=True)
class Fence:
    """Which state of which job a writer believes in; nothing is written when the record has moved on."""

    job_id: int
    generation: int
    status: Status

    @property
    def condition(self) -> sa.ColumnElement[bool]:
        return sa.and_(jobs.c.id == self.job_id, jobs.c.generation == self.generation, jobs.c.status == self.status)


def fence_of(row: Row) -> Fence:
    return Fence(row.id, row.generation, Status(row.status))


def apply(
    connection: sa.Connection,
    fence: Fence,
    values: dict[str, Any],
    now: float,
    *,
    extra: sa.ColumnElement[bool] | None = None,
    event: MakeEvent = progress_message,
    seq: int = 1,
    prev: EventId | None = None,
) -> Row | None:
    """Applies one transition. Returns the new row, or None when the fence (or `extra`) no longer holds.

    `seq`: 1 where the transition raises the generation and is its only event; a finish gives its supervisor's next.
    `prev`: the event before it; by default the newest that SQL knows.
    """
    condition = fence.condition if extra is None else sa.and_(fence.condition, extra)
    # Locked: `prev` must be the newest event also when another writer was just at work.
    before = connection.execute(
        sa.select(jobs.c.last_generation, jobs.c.last_seq).where(jobs.c.id == fence.job_id).with_for_update()
    ).one_or_none()
    if before is None:
        return None
    changed = connection.execute(
        jobs.update().where(condition).values(updated_at=now, **values).returning(jobs)
    ).one_or_none()
    if changed is None:
        return None
    identifier = EventId(changed.generation, seq)
    # A transition that follows its own stored event (finish) is fenced to the same generation, so this can't go back.
    known = EventId(before.last_generation, before.last_seq)
    store_event(connection, changed, identifier, known if prev is None else prev, event, now)
    row: Row = connection.execute(sa.select(jobs).where(jobs.c.id == fence.job_id)).one()
    return row


def store_event(
    connection: sa.Connection, row: Row, identifier: EventId, prev: EventId, event: MakeEvent, now: float
) -> None:
    """Stores a transition's event, not yet announced: whoever ships it ships exactly these bytes."""
    job = training_job(row, hosts_of(connection, [row.id]).get(row.id, []))
    message = event(job, identifier)
    connection.execute(
        transition_events.insert().values(
            job_id=row.id,
            generation=identifier.generation,
            seq=identifier.seq,
            prev=str(prev),
            type=message.type,
            status=str(message.status),
            payload=encode(message),
            announced=False,
            created_at=now,
        )
    )
    connection.execute(
        jobs.update().where(jobs.c.id == row.id).values(last_generation=identifier.generation, last_seq=identifier.seq)
    )


def release_resources(connection: sa.Connection, job_id: int, *, quarantine: bool = False, began: bool = True) -> None:
    """Gives a job's hosts and GPUs back, in the transaction that ends its attempt.

    `quarantine`: its tree would not die; its GPUs are not offered until they are empty. `began=False`: nothing of it
    has used them, so that what is used there is others'.
    """
    released = connection.execute(placements.delete().where(placements.c.job_id == job_id)).rowcount
    if released > 1:
        # Hosts that claimed their place and wait for the others: their supervisors find that their row is gone.
        connection.execute(members.delete().where(members.c.job_id == job_id, members.c.attempt.is_(None)))
    held = gpus.update().where(gpus.c.job_id == job_id)
    if quarantine:
        connection.execute(held.values(job_id=None, quarantined=True))
        return
    if not began:
        connection.execute(held.values(job_id=None))
        return
    # The host's last heartbeat still counts the job's memory: without it these GPUs would pass the best job by.
    left = sa.case((gpus.c.others_bytes < gpus.c.used_bytes, gpus.c.others_bytes), else_=gpus.c.used_bytes)
    connection.execute(held.values(job_id=None, used_bytes=left))


def end_attempt(
    connection: sa.Connection,
    job_id: int,
    generation: int,
    now: float,
    outcome: str,
    reason: str | None = None,
    error: dict[str, Any] | None = None,
) -> None:
    """Writes why the attempt of `generation` ended, unless that is written already."""
    connection.execute(
        attempts.update()
        .where(attempts.c.job_id == job_id, attempts.c.generation == generation, attempts.c.ended_at.is_(None))
        .values(ended_at=now, outcome=outcome, reason=reason, error=error)
    )


def requeued(row: Row, now: float) -> dict[str, Any]:
    """What every return to the queue writes: a new generation that nobody owns."""
    return {
        "status": Status.QUEUED,
        "generation": row.generation + 1,
        "lease_until": 0.0,
        "queued_at": now,
        "pending_reason": None,
        "eta_s": None,
    }


def stop_queued(connection: sa.Connection, row: Row, now: float) -> bool:
    """Stops a queued job. Returns whether it was this call that did it."""
    values = {
        "status": Status.STOPPED,
        "generation": row.generation + 1,
        "stop_requested": True,
        "finished_at": now,
        "eta_s": None,
    }
    if apply(connection, fence_of(row), values, now) is None:
        return False
    release_resources(connection, row.id)
    return True


def error_message(job: TrainingJob, identifier: EventId) -> Error:
    """The `error` event of a job that failed."""
    assert job.error is not None
    return Error(
        id=str(identifier),
        job_id=job.job_id,
        status=job.status,
        progress=job.progress,
        current_epoch=job.current_epoch,
        total_epochs=job.total_epochs,
        timestamp=job.timestamp,
        error_message=job.error.message,
        error=job.error,
    )
