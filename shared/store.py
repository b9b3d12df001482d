"""The record as users change it: create, stop, restart; and as everybody reads one job."""

import time
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from epochcast.events import BEFORE_ALL, EventId
from epochcast.jobs import Status, TrainingJob, TrainingJobSpec
from shared.archive import transition_entry
from shared.database import Database
from shared.errors import IdempotencyConflict, IllegalTransition, JobNotFound
from shared.event_log import Entry
from shared.rows import Row, hosts_of, progress_message, training_job
from shared.tables import artifacts, idempotency_keys, job_tags, jobs, transition_events
from shared.transitions import apply, fence_of, requeued, stop_queued, store_event


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's own name for one submission, with the SHA-256 of the body it came with (hex)."""

    key: str
    body_sha256: str


@dataclass(frozen=True, slots=True)
class Unannounced:
    """A stored transition event that Redis may not have yet."""

    job_id: int
    entry: Entry


class Store:
    """Reads and users' transitions of the record. Methods raise DatabaseUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def create(
        self, spec: TrainingJobSpec, owner: str, idempotency: IdempotencyKey | None = None
    ) -> tuple[TrainingJob, bool]:
        """Stores a job and its first event in one transaction; the row is the outbox.

        `spec` is resolved (recipe defaults filled in, total_epochs set). Returns the job and whether it is new; the
        same key and body give the earlier job. Raises IdempotencyConflict for the same key with another body.
        """
        try:
            with self.database.write() as connection:
                if idempotency is not None:
                    earlier = self._earlier(connection, owner, idempotency)
                    if earlier is not None:
                        return earlier, False
                return self._insert(connection, spec, owner, idempotency), True
        except IntegrityError:
            # Two requests with one key at the same moment: the other one won.
            with self.database.read() as connection:
                earlier = self._earlier(connection, owner, idempotency) if idempotency is not None else None
                if earlier is None:
                    raise
                return earlier, False

    def _earlier(self, connection: sa.Connection, owner: str, idempotency: IdempotencyKey) -> TrainingJob | None:
        known = connection.execute(
            sa.select(idempotency_keys).where(
                idempotency_keys.c.owner == owner, idempotency_keys.c.key == idempotency.key
            )
        ).one_or_none()
        if known is None:
            return None
        if known.body_sha256 != idempotency.body_sha256:
            raise IdempotencyConflict(idempotency.key, known.job_id)
        return self._job(connection, known.job_id, None)

    def _insert(
        self, connection: sa.Connection, spec: TrainingJobSpec, owner: str, idempotency: IdempotencyKey | None
    ) -> TrainingJob:
        now = self.database.time(connection)
        assert spec.total_epochs is not None
        row: Row = connection.execute(
            jobs.insert()
            .values(
                owner=owner,
                name=spec.name or spec.recipe or "job",
                status=Status.QUEUED,
                recipe=spec.recipe,
                spec=spec.model_dump(mode="json"),
                priority=spec.priority,
                total_epochs=spec.total_epochs,
                created_at=now,
                queued_at=now,
                updated_at=now,
            )
            .returning(jobs)
        ).one()
        for tag in dict.fromkeys(spec.tags):
            connection.execute(job_tags.insert().values(job_id=row.id, tag=tag))
        if idempotency is not None:
            connection.execute(
                idempotency_keys.insert().values(
                    owner=owner,
                    key=idempotency.key,
                    body_sha256=idempotency.body_sha256,
                    job_id=row.id,
                    created_at=now,
                )
            )
        store_event(connection, row, EventId(row.generation, 1), BEFORE_ALL, progress_message, now)
        return self._job(connection, row.id, None)

    def get(self, job_id: int, visible_to: str | None = None) -> TrainingJob:
        """The job now. `visible_to`: an owner who sees only their own; None sees all. Raises JobNotFound."""
        with self.database.read() as connection:
            return self._job(connection, job_id, visible_to)

    def owner(self, job_id: int) -> str:
        """Whose job it is: never changes, so callers may remember it. Raises JobNotFound."""
        with self.database.read() as connection:
            owner = connection.execute(sa.select(jobs.c.owner).where(jobs.c.id == job_id)).scalar_one_or_none()
        if owner is None:
            raise JobNotFound(job_id)
        return str(owner)

    def _job(self, connection: sa.Connection, job_id: int, visible_to: str | None) -> TrainingJob:
        row = self._row(connection, job_id, visible_to)
        position = queue_position(connection, row) if row.status == Status.QUEUED else None
        return training_job(row, hosts_of(connection, [row.id]).get(row.id, []), position)

    def _row(self, connection: sa.Connection, job_id: int, visible_to: str | None) -> Row:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None or (visible_to is not None and row.owner != visible_to):
            raise JobNotFound(job_id)
        return row

    def request_stop(self, job_id: int, visible_to: str | None = None) -> TrainingJob:
        """Asks a job to stop: a queued one is stopped at once, a running one gets the flag. Again: no change.

        Raises IllegalTransition when it has succeeded or failed, JobNotFound.
        """
        while True:
            with self.database.write() as connection:
                row = self._row(connection, job_id, visible_to)
                now = self.database.time(connection)
                match Status(row.status):
                    case Status.SUCCEEDED | Status.FAILED:
                        raise IllegalTransition(job_id, Status(row.status), "queued or running jobs can be stopped")
                    case Status.QUEUED:
                        done = stop_queued(connection, row, now)
                    case Status.RUNNING:
                        flag = jobs.update().where(fence_of(row).condition).values(stop_requested=True)
                        done = connection.execute(flag).rowcount == 1
                    case Status.STOPPED:
                        done = True
                if done:
                    return self._job(connection, job_id, None)
            # The job moved between the read and the write (PostgreSQL): look again.

    def restart(self, job_id: int, *, from_scratch: bool = False, visible_to: str | None = None) -> TrainingJob:
        """Queues a failed or stopped job again, from its last checkpoint (`from_scratch`: without).

        Raises IllegalTransition for any other status, JobNotFound.
        """
        with self.database.write() as connection:
            row = self._row(connection, job_id, visible_to)
            if row.status not in (Status.FAILED, Status.STOPPED):
                raise IllegalTransition(job_id, Status(row.status), "failed or stopped jobs can be restarted")
            now = self.database.time(connection)
            checkpoint = None
            if not from_scratch and row.checkpoint_id is not None:
                checkpoint = connection.execute(
                    sa.select(artifacts).where(artifacts.c.id == row.checkpoint_id)
                ).one_or_none()
            values = requeued(row, now) | {
                "checkpoint_id": checkpoint.id if checkpoint else None,
                "current_epoch": (checkpoint.epoch or 0) if checkpoint else 0,
                "progress": min(1.0, (checkpoint.epoch or 0) / row.total_epochs) if checkpoint else 0.0,
                "stop_requested": False,
                "error": None,
                "final_metrics": None,
                "model_id": None,
                "restarts_used": 0,
                "losses": 0,
                "started_at": None,
                "finished_at": None,
                "not_before": 0.0,
            }
            if not checkpoint:
                values |= {"metrics": {}, "current_loss": None}
            if from_scratch:
                newest = sa.select(sa.func.max(artifacts.c.id)).where(artifacts.c.job_id == job_id)
                values["checkpoints_after"] = connection.execute(newest).scalar_one() or 0
            if apply(connection, fence_of(row), values, now) is None:
                raise IllegalTransition(job_id, Status(row.status), "failed or stopped jobs can be restarted")
            return self._job(connection, job_id, None)

    def unannounced(self, limit: int = 200, after: int = 0) -> list[Unannounced]:
        """Stored transition events that nobody with a live lease is about to ship, oldest first per job.

        `after`: only those of jobs behind this one.
        """
        with self.database.read() as connection:
            rows = connection.execute(
                sa.select(transition_events, jobs.c.owner)
                .join(jobs, jobs.c.id == transition_events.c.job_id)
                .where(
                    sa.not_(transition_events.c.announced),
                    jobs.c.lease_until < self.database.now,
                    transition_events.c.job_id > after,
                )
                .order_by(transition_events.c.job_id, transition_events.c.generation, transition_events.c.seq)
                .limit(limit)
            ).all()
            return [Unannounced(row.job_id, transition_entry(row, row.owner)) for row in rows]

    def mark_announced(self, job_id: int, identifier: EventId) -> None:
        """Redis has this event (or a later one): nobody needs to ship it again."""
        with self.database.write() as connection:
            connection.execute(
                transition_events.update()
                .where(
                    transition_events.c.job_id == job_id,
                    transition_events.c.generation == identifier.generation,
                    transition_events.c.seq == identifier.seq,
                )
                .values(announced=True)
            )

    def wait_announced(self, job_id: int, identifier: EventId, timeout_s: float) -> bool:
        """Waits until an event is announced, at most `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self.database.read() as connection:
                announced = connection.execute(
                    sa.select(transition_events.c.announced).where(
                        transition_events.c.job_id == job_id,
                        transition_events.c.generation == identifier.generation,
                        transition_events.c.seq == identifier.seq,
                    )
                ).scalar_one_or_none()
            if announced or time.monotonic() >= deadline:
                return bool(announced)
            time.sleep(0.02)


def queue_position(connection: sa.Connection, row: Row) -> int:
    """1 for the job that is next in line: priority first, then age."""
    ahead = sa.or_(
        jobs.c.priority > row.priority,
        sa.and_(jobs.c.priority == row.priority, jobs.c.queued_at < row.queued_at),
        sa.and_(jobs.c.priority == row.priority, jobs.c.queued_at == row.queued_at, jobs.c.id < row.id),
    )
    count = connection.execute(sa.select(sa.func.count()).where(jobs.c.status == Status.QUEUED, ahead)).scalar_one()
    return int(count) + 1
