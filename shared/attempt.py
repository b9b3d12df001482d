"""What an attempt writes after its claim: every write fenced by job, generation and status."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from epochcast.events import EventId
from epochcast.jobs import JobError, Metrics, Status, TrainingJob, utc_seconds
from shared.archive import Chunk, store_chunk, transition_entry, trim
from shared.claims import Claim
from shared.database import Database
from shared.event_log import Entry
from shared.gang import end_members
from shared.rows import moment, progress_message, training_job
from shared.tables import artifacts, attempts, gpus, jobs, metric_points, models, transition_events
from shared.transitions import Fence, Terminal, apply, end_attempt, release_resources


class LeaseLost(Exception):
    """Raised when a fenced write found no row: somebody else owns the job now. Kill the tree, write nothing."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a renewal of a lease brings back. `ordered`: what member 0 told this member (`drain`, `kill`)."""

    stop_requested: bool
    ordered: str | None = None


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One report. `step` None: the epoch's own."""

    epoch: int
    step: int | None
    values: Metrics
    recorded_at: float


@dataclass(frozen=True, slots=True)
class ProgressState:
    """A running job's state, as pollers without Redis see it."""

    current_epoch: int
    progress: float
    current_loss: float | None
    metrics: Metrics
    eta_s: float | None
    total_epochs: int | None = None
    """If the script said how many it trains."""
    resumed_epoch: int | None = None
    """The checkpoint's that the script has loaded, if it has."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is in the artifact store already."""

    kind: str
    key: str
    bytes: int
    sha256: str
    epoch: int | None = None
    step: int | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class NewModel:
    file: StoredFile
    metrics: Metrics
    lineage: dict[str, Any] = field(default_factory=dict)


class AttemptRecord:
    """One attempt's fenced writes. Each raises LeaseLost once the fence is gone, DatabaseUnavailable in an outage."""

    def __init__(self, database: Database, claim: Claim, *, archive_limit_bytes: int, checkpoints_kept: int) -> None:
        self.database = database
        self._fence = claim.fence
        self._job = claim.job
        self._membership = claim.membership
        self._archive_limit_bytes = archive_limit_bytes
        self._checkpoints_kept = checkpoints_kept
        self._archived_bytes: int | None = None
        self._told_resumed: int | None = None

    def heartbeat(self, lease_s: float) -> Heartbeat:
        """Renews the lease from the database's clock."""
        with self.database.write() as connection:
            stop_requested = connection.execute(
                jobs.update()
                .where(self._fence.condition)
                .values(lease_until=self.database.now + lease_s)
                .returning(jobs.c.stop_requested)
            ).scalar_one_or_none()
            if stop_requested is None:
                raise LeaseLost(f"job {self._fence.job_id} generation {self._fence.generation}")
            return Heartbeat(bool(stop_requested))

    def record_launcher(self, pid: int, started: int) -> None:
        """Which process holds the kill switch; `started`: its start time in clock ticks since boot."""
        with self._fenced() as (connection, _now):
            connection.execute(
                attempts.update()
                .where(attempts.c.job_id == self._fence.job_id, attempts.c.generation == self._fence.generation)
                .values(launcher_pid=pid, launcher_started=started)
            )

    def record(self, state: ProgressState | None, points: Sequence[MetricPoint], chunk: Chunk | None) -> None:
        """One batch, at most once a second: state for pollers, metrics history, archive chunk, in one transaction."""
        with self._fenced() as (connection, now):
            values: dict[str, Any] = {"updated_at": now}
            if state is not None:
                values |= {
                    "current_epoch": state.current_epoch,
                    "progress": state.progress,
                    "current_loss": state.current_loss,
                    "metrics": state.metrics,
                    "eta_s": state.eta_s,
                    "expected_end_at": None if state.eta_s is None else now + state.eta_s,
                }
                values |= _told_total(state)
            if state is not None or points:
                values["reported_at"] = now
            if chunk is not None:
                values |= {"last_generation": self._fence.generation, "last_seq": chunk.last_seq}
                self._archive(connection, chunk, now)
            connection.execute(jobs.update().where(self._fence.condition).values(**values))
            self._store_points(connection, points)
            self._tell_resumed(connection, state)
        self._told_resumed = state.resumed_epoch if state is not None else self._told_resumed

    def _tell_resumed(self, connection: sa.Connection, state: ProgressState | None) -> None:
        """Which checkpoint the attempt goes on from: what it was offered need not be what it has loaded."""
        if state is None or state.resumed_epoch == self._told_resumed:
            return
        connection.execute(
            attempts.update()
            .where(attempts.c.job_id == self._fence.job_id, attempts.c.generation == self._fence.generation)
            .values(resumed_epoch=state.resumed_epoch)
        )

    def _archive(self, connection: sa.Connection, chunk: Chunk, now: float) -> None:
        store_chunk(connection, self._fence.job_id, self._fence.generation, chunk, now)
        if self._archived_bytes is None:
            self._archived_bytes = 0
            self._archived_bytes = trim(connection, self._fence.job_id, self._archive_limit_bytes)
            return
        self._archived_bytes += len(chunk.payload)
        if self._archived_bytes > self._archive_limit_bytes:
            # A tenth of room, so that a full archive isn't trimmed again at every chunk.
            self._archived_bytes = trim(connection, self._fence.job_id, self._archive_limit_bytes * 9 // 10)

    def _store_points(self, connection: sa.Connection, points: Sequence[MetricPoint]) -> None:
        rows = [
            {
                "job_id": self._fence.job_id,
                "epoch": point.epoch,
                "step": -1 if point.step is None else point.step,
                "generation": self._fence.generation,
                "reported": point.values,
                "recorded_at": point.recorded_at,
            }
            for point in points
        ]
        if not rows:
            return
        # A resumed attempt that repeats an epoch replaces it: history gives the newest.
        insert = sqlite.insert(metric_points) if self.database.is_sqlite else postgresql.insert(metric_points)
        newest = {name: insert.excluded[name] for name in ("generation", "reported", "recorded_at")}
        connection.execute(insert.on_conflict_do_update(index_elements=["job_id", "epoch", "step"], set_=newest), rows)

    def commit_checkpoint(self, file: StoredFile) -> list[str]:
        """Moves the checkpoint pointer to an uploaded file. Returns the store keys that retention lets go."""
        with self._fenced() as (connection, now):
            artifact_id = self._insert_artifact(connection, file, now)
            connection.execute(jobs.update().where(self._fence.condition).values(checkpoint_id=artifact_id, losses=0))
            return self._drop_old_checkpoints(connection)

    def add_artifact(self, file: StoredFile) -> int:
        """Registers any other uploaded file of the attempt."""
        with self._fenced() as (connection, now):
            return self._insert_artifact(connection, file, now)

    def _insert_artifact(self, connection: sa.Connection, file: StoredFile, now: float) -> int:
        """The row of the file; the one it has already when the write that made it was not acknowledged."""
        values = {
            "attempt": self._job.attempt,
            "generation": self._fence.generation,
            "kind": file.kind,
            "epoch": file.epoch,
            "step": file.step,
            "bytes": file.bytes,
            "sha256": file.sha256,
            "loss": file.loss,
        }
        same = sa.and_(artifacts.c.job_id == self._fence.job_id, artifacts.c.key == file.key)
        known = connection.execute(artifacts.update().where(same).values(**values).returning(artifacts.c.id)).scalar()
        if known is not None:
            return int(known)
        new = artifacts.insert().values(job_id=self._fence.job_id, key=file.key, created_at=now, **values)
        return int(connection.execute(new.returning(artifacts.c.id)).scalar_one())

    def _drop_old_checkpoints(self, connection: sa.Connection) -> list[str]:
        """Keeps the last k and the best (lowest loss) since the job began, or began from scratch."""
        rows = connection.execute(
            sa.select(artifacts.c.id, artifacts.c.key, artifacts.c.loss, jobs.c.checkpoints_after)
            .join(jobs, jobs.c.id == artifacts.c.job_id)
            .where(artifacts.c.job_id == self._fence.job_id, artifacts.c.kind == "checkpoint")
            .order_by(artifacts.c.id.desc())
        ).all()
        judged = [row for row in rows if row.loss is not None and row.id > row.checkpoints_after]
        best = min(judged, key=lambda row: row.loss).id if judged else None
        dropped = [row for row in rows[self._checkpoints_kept :] if row.id != best]
        if dropped:
            connection.execute(artifacts.delete().where(artifacts.c.id.in_([row.id for row in dropped])))
        return [row.key for row in dropped]

    def finish(
        self,
        status: Status,
        *,
        seq: int,
        prev: EventId,
        make_event: Callable[[TrainingJob, EventId], Terminal],
        lease_s: float,
        outcome: str,
        reason: str | None = None,
        error: JobError | None = None,
        final_metrics: Metrics | None = None,
        state: ProgressState | None = None,
        model: NewModel | None = None,
        quarantine: bool = False,
    ) -> tuple[TrainingJob, Entry]:
        """Writes the end of the job in one transaction: status, metrics, model, released GPUs, the terminal event.

        The lease is kept (`lease_s`) until `announced`, so that nobody else ships the event meanwhile. Called again
        after an outage that left open whether this was written, it finds it or writes it. Raises MembersAlive.
        """
        finished = Fence(self._fence.job_id, self._fence.generation, status)
        with self.database.write() as connection:
            known = self._written(connection, finished, seq)
            if known is not None:
                self._fence = finished
                return known
            now = self.database.time(connection)
            model_id = self._insert_model(connection, model, now) if model is not None else None
            values: dict[str, Any] = {
                "status": status,
                "finished_at": now,
                "lease_until": now + lease_s,
                "eta_s": None,
                "error": error.model_dump(mode="json") if error else None,
                "final_metrics": final_metrics,
                "model_id": model_id,
            }
            if state is not None:
                values |= {
                    "current_epoch": state.current_epoch,
                    "progress": state.progress,
                    "current_loss": state.current_loss,
                    "metrics": state.metrics,
                }
                values |= _told_total(state)
            self._tell_resumed(connection, state)
            row = apply(connection, self._fence, values, now, event=make_event, seq=seq, prev=prev)
            if row is None:
                raise LeaseLost(f"job {self._fence.job_id} generation {self._fence.generation}")
            dumped = error.model_dump(mode="json") if error else None
            end_attempt(connection, row.id, row.generation, now, outcome, reason, dumped)
            self._end_members(connection, now, outcome)
            self._release(connection, quarantine)
            written = self._written(connection, finished, seq)
            assert written is not None
        # From here on only lease, chunks and `announced` may change, by whoever wrote this status. Not before the
        # commit: what was rolled back is written again under the fence it had.
        self._fence = finished
        return written

    def _written(self, connection: sa.Connection, finished: Fence, seq: int) -> tuple[TrainingJob, Entry] | None:
        """This attempt's end as the record has it: nobody else ends a job without raising its generation."""
        row = connection.execute(sa.select(jobs).where(finished.condition)).one_or_none()
        stored = connection.execute(
            sa.select(transition_events).where(
                transition_events.c.job_id == finished.job_id,
                transition_events.c.generation == finished.generation,
                transition_events.c.seq == seq,
            )
        ).one_or_none()
        if row is None or stored is None:
            return None
        return training_job(row, []), transition_entry(stored, row.owner)

    def _insert_model(self, connection: sa.Connection, model: NewModel, now: float) -> int:
        artifact_id = self._insert_artifact(connection, model.file, now)
        inserted = connection.execute(
            models.insert()
            .values(
                job_id=self._fence.job_id,
                artifact_id=artifact_id,
                name=self._job.name,
                owner=self._job.owner,
                metrics=model.metrics,
                lineage=model.lineage,
                created_at=now,
            )
            .returning(models.c.id)
        ).scalar_one()
        return int(inserted)

    def announced(self, entry: Entry, *, status: Status) -> None:
        """After its own finish: the terminal event is in Redis; gives the lease back."""
        with self.database.write() as connection:
            own = Fence(self._fence.job_id, self._fence.generation, status)
            connection.execute(jobs.update().where(own.condition).values(lease_until=0.0))
            self._mark(connection, entry.id)

    def mark_announced(self, entry: Entry) -> None:
        """An older stored event, or the claim's, is in Redis."""
        with self.database.write() as connection:
            self._mark(connection, entry.id)

    def _mark(self, connection: sa.Connection, identifier: EventId) -> None:
        connection.execute(
            transition_events.update()
            .where(
                transition_events.c.job_id == self._fence.job_id,
                transition_events.c.generation == identifier.generation,
                transition_events.c.seq == identifier.seq,
            )
            .values(announced=True)
        )

    def requeue(
        self,
        outcome: str,
        reason: str,
        *,
        charged: bool = False,
        delay_s: float = 0.0,
        error: JobError | None = None,
        hyperparameters: dict[str, Any] | None = None,
        quarantine: bool = False,
    ) -> None:
        """Gives the job back to the queue: a new generation whose only event the announcer ships.

        `hyperparameters`: the job's from now on; None leaves them. Raises MembersAlive.
        """
        with self.database.write() as connection:
            now = self.database.time(connection)
            values = {
                "status": Status.QUEUED,
                "generation": self._fence.generation + 1,
                "lease_until": 0.0,
                "queued_at": now if charged else jobs.c.queued_at,
                "not_before": now + delay_s,
                "pending_reason": f"tries again at {utc_seconds(moment(now + delay_s))}: {reason}" if delay_s else None,
                "restarts_used": jobs.c.restarts_used + int(charged),
                "eta_s": None,
            }
            if hyperparameters is not None:
                spec = self._job.spec.model_copy(update={"hyperparameters": hyperparameters})
                values["spec"] = spec.model_dump(mode="json")
            row = apply(connection, self._fence, values, now, event=progress_message)
            if row is None:
                raise LeaseLost(f"job {self._fence.job_id} generation {self._fence.generation}")
            dumped = error.model_dump(mode="json") if error else None
            end_attempt(connection, row.id, self._fence.generation, now, outcome, reason, dumped)
            self._end_members(connection, now, outcome)
            self._release(connection, quarantine)

    def _release(self, connection: sa.Connection, quarantine: bool) -> None:
        membership = self._membership
        if membership is not None and quarantine:
            # What would not die here says nothing about the other hosts' GPUs.
            here = sa.and_(gpus.c.job_id == self._fence.job_id, gpus.c.host == membership.host)
            connection.execute(gpus.update().where(here).values(quarantined=True))
        release_resources(connection, self._fence.job_id, quarantine=quarantine and membership is None)

    def _end_members(self, connection: sa.Connection, now: float, outcome: str) -> None:
        """On several hosts an attempt ends only when it has ended on all of them. Raises MembersAlive."""
        if self._job.spec.resources.nodes > 1:
            end_members(connection, self._fence.job_id, self._fence.generation, now, outcome)

    def _fenced(self) -> "_FencedTransaction":
        return _FencedTransaction(self.database, self._fence)


class _FencedTransaction:
    """A write transaction that first proves, under the row's lock, that the fence still holds."""

    def __init__(self, database: Database, fence: Fence) -> None:
        self._fence = fence
        self.database = database
        self._context = database.write()

    def __enter__(self) -> tuple[sa.Connection, float]:
        connection = self._context.__enter__()
        try:
            locked = sa.select(jobs.c.id).where(self._fence.condition).with_for_update()
            if connection.execute(locked).one_or_none() is None:
                raise LeaseLost(f"job {self._fence.job_id} generation {self._fence.generation}")
            return connection, self.database.time(connection)
        except BaseException as error:
            self._context.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(self, *exception: Any) -> bool | None:
        return self._context.__exit__(*exception)


def _told_total(state: ProgressState) -> dict[str, Any]:
    return {} if state.total_epochs is None else {"total_epochs": state.total_epochs}
