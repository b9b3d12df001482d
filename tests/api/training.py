"""Plays the worker's part for tests of the gateway: moves one job through the record and its event log."""

import time
from typing import Any

import redis

from epochcast.events import BEFORE_ALL, Complete, Error, EventId, Log, Progress, encode
from epochcast.jobs import JobError, Status, TrainingJob, TrainingJobSpec
from shared.archive import chunk_of
from shared.attempt import AttemptRecord, ProgressState
from shared.claims import Claim, ProcessIdentity, claim
from shared.database import Database
from shared.event_log import Appended, Entry, EventLog, log_key
from shared.rows import progress_message
from shared.store import Store
from shared.tables import placements

HOST = "test-host"


class Training:
    """One job, and the attempt that runs it. Every step goes to SQL and Redis in a worker's order."""

    def __init__(self, database: Database, redis_url: str, owner: str = "alice", epochs: int = 1000) -> None:
        self.database = database
        self.client = redis.Redis.from_url(redis_url)
        self.log = EventLog(self.client)
        self.store = Store(database)
        spec = TrainingJobSpec(recipe="image-classifier", total_epochs=epochs, name="test")
        job, _ = self.store.create(spec, owner)
        self.owner = owner
        self.epochs = epochs
        self.job_id = job.job_id
        self.last = BEFORE_ALL
        self.epoch = 0
        self.shipped: list[Entry] = []
        """What this attempt wrote, for the archive and for shipping again."""
        self.claimed: Claim | None = None
        self._archived = 0

    @property
    def job(self) -> TrainingJob:
        return self.store.get(self.job_id)

    @property
    def ids(self) -> list[str]:
        """The job's event log as it is in Redis."""
        rows: Any = self.client.xrange(log_key(self.job_id))
        return [identifier.decode() for identifier, _ in rows]

    @property
    def record(self) -> AttemptRecord:
        assert self.claimed is not None
        return AttemptRecord(self.database, self.claimed, archive_limit_bytes=2**26, checkpoints_kept=2)

    def announce(self) -> None:
        """What the announcer does with stored events."""
        for event in self.store.unannounced():
            if event.job_id == self.job_id:
                current = encode(progress_message(self.store.get(self.job_id), event.entry.id))
                self.append(event.entry, current=current)
                self.store.mark_announced(self.job_id, event.entry.id)

    def start(self, lease_s: float = 60) -> "Training":
        """Places and claims the job; ships what was stored so far and the claim."""
        with self.database.write() as connection:
            now = self.database.time(connection)
            connection.execute(
                placements.insert().values(
                    job_id=self.job_id, member=0, host=HOST, gpus=[], placed_at=now, next_poke_at=now
                )
            )
        self.claimed = claim(self.database, self.job_id, HOST, lease_s, 1, ProcessIdentity("boot", "namespace", 1, 1))
        assert self.claimed is not None
        self.shipped, self._archived = [], 0
        for entry in self.claimed.unannounced:
            self.append(entry, current=encode(progress_message(self.claimed.job, entry.id)))
            self.record.mark_announced(entry)
        return self

    def append(self, entry: Entry, *, current: bytes | None = None, announce: bool = True) -> Appended:
        """Ships one event as it is."""
        current = current or encode(progress_message(self.job, entry.id))
        answer = self.log.append(self.job_id, entry, snapshot=b"{}", current=current, announce=announce)
        self.last = entry.id
        return answer

    def report(self, count: int = 1, *, ship: bool = True) -> list[Entry]:
        """The next epochs' events, shipped to Redis."""
        entries = []
        for _ in range(count):
            self.epoch += 1
            entry = self._entry(self._progress(EventId(self.last.generation, self.last.seq + 1)))
            entries.append(self._take(entry, ship))
        return entries

    def say(self, message: str, *, ship: bool = True) -> Entry:
        """A log line."""
        identifier = EventId(self.last.generation, self.last.seq + 1)
        return self._take(self._entry(Log(message=message, **self._common(identifier))), ship)

    def _take(self, entry: Entry, ship: bool) -> Entry:
        self.shipped.append(entry)
        if ship:
            self.append(entry, current=encode(self._progress(entry.id)))
        self.last = entry.id
        return entry

    def archive(self) -> None:
        """Writes what was shipped to SQL, as a worker does once a second."""
        state = ProgressState(self.epoch, self.epoch / self.epochs, 0.5, {"train_loss": 0.5}, 1.0)
        new, self._archived = self.shipped[self._archived :], len(self.shipped)
        self.record.record(state, [], chunk_of(new) if new else None)

    def ship_again(self) -> None:
        """What a worker does on `behind`: its whole generation from the journal; only the last is announced."""
        assert self.claimed is not None
        own = [*self.claimed.unannounced[-1:], *self.shipped]
        for entry in own:
            self.append(entry, announce=entry is own[-1])

    def finish(self, status: Status = Status.SUCCEEDED, *, ship: bool = True, error: JobError | None = None) -> Entry:
        """Ends the job in SQL, then (unless the worker dies in between) ships the terminal event."""
        self.archive()

        def terminal(job: TrainingJob, identifier: EventId) -> Progress | Complete | Error:
            common = self._common(identifier) | {"status": job.status}
            match status:
                case Status.SUCCEEDED:
                    return Complete(model_id=7, final_metrics={"train_loss": 0.5}, duration_s=1.0, **common)
                case Status.FAILED:
                    assert job.error is not None
                    return Error(error_message=job.error.message, error=job.error, **common)
                case _:
                    return progress_message(job, identifier)

        if status is Status.FAILED and error is None:
            error = JobError(type="cuda_oom", message="CUDA out of memory")
        identifier = EventId(self.last.generation, self.last.seq + 1)
        _, entry = self.record.finish(
            status, seq=identifier.seq, prev=self.last, make_event=terminal, lease_s=0, outcome=str(status), error=error
        )
        self.last = entry.id
        if ship:
            self.append(entry)
            self.record.announced(entry, status=status)
        return entry

    def close(self) -> None:
        self.client.close()

    def _common(self, identifier: EventId) -> dict[str, Any]:
        return {
            "id": str(identifier),
            "job_id": self.job_id,
            "status": Status.RUNNING,
            "progress": self.epoch / self.epochs,
            "current_epoch": self.epoch,
            "total_epochs": self.epochs,
            "timestamp": time.time(),
        }

    def _progress(self, identifier: EventId) -> Progress:
        return Progress(current_loss=0.5, metrics={"train_loss": 0.5}, attempt=1, **self._common(identifier))

    def _entry(self, message: Progress | Log) -> Entry:
        return Entry(EventId.parse(message.id), self.last, message.type, message.status, self.owner, encode(message))
