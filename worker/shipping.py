"""The shipper: takes events from the journal to Redis in order, through outages, retries and lost tails."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import redis
import structlog

from epochcast.events import EventId
from epochcast.jobs import TrainingJob
from shared.database import DatabaseUnavailable
from shared.event_log import Answer, Entry, EventLog
from shared.queries import Queries
from worker.job_state import Snapshots
from worker.journal import Journal, Record
from worker.outcome import Cut
from worker.requests import Requests

logger = structlog.get_logger(__name__)

_BATCH = 200
_RETRY_FIRST_S, _RETRY_LIMIT_S = 0.1, 2.0


class Shipper:
    """One attempt's way to Redis: a thread that the training never waits for.

    `older`: stored events of earlier generations that go first. `on_shipped` hears of each event that SQL holds
    as not yet announced.
    """

    def __init__(
        self,
        event_log: EventLog,
        journal: Journal,
        job: TrainingJob,
        older: Sequence[Entry],
        archive: Queries,
        on_shipped: Callable[[Entry], None],
        requests: Requests,
    ) -> None:
        self._event_log = event_log
        self._journal = journal
        self._job_id = job.job_id
        self._snapshots = Snapshots(job)
        self._older = list(older)
        self._archive = archive
        self._on_shipped = on_shipped
        self._requests = requests
        self._next_seq = 1
        self._woken = threading.Condition()
        self._ending = False
        self._fenced = False
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """The journal has grown."""
        with self._woken:
            self._woken.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Waits until everything in the journal is in Redis; False when that takes longer (Redis away)."""
        with self._woken:
            return self._woken.wait_for(self._is_done, timeout_s) and not self._fenced

    @property
    def is_fenced(self) -> bool:
        return self._fenced

    def ship_last(self, entry: Entry, job: TrainingJob, current: bytes, try_again: Callable[[], bool]) -> bool:
        """After `drain`: the terminal event, exactly as SQL stored it. Returns whether Redis has it.

        `try_again` is asked after each failed try.
        """
        snapshot = job.model_dump_json().encode()
        while True:
            try:
                return self._append(entry, snapshot, current) is not Answer.FENCED
            except redis.RedisError as error:
                logger.warning("terminal event waits for Redis", job_id=self._job_id, error=str(error))
            time.sleep(_RETRY_LIMIT_S)
            if not try_again():
                return False

    def stop(self) -> None:
        with self._woken:
            self._ending = True
            self._woken.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _is_done(self) -> bool:
        return self._fenced or (not self._older and self._next_seq > self._journal.last_seq)

    def _run(self) -> None:
        delay_s = _RETRY_FIRST_S
        while True:
            with self._woken:
                self._woken.wait_for(lambda: self._ending or not self._is_done(), 1.0)
                if self._ending or self._fenced:
                    return
            try:
                self._ship_some()
                delay_s = _RETRY_FIRST_S
            except (redis.RedisError, DatabaseUnavailable) as error:
                logger.warning("events wait", job_id=self._job_id, error=str(error))
                with self._woken:
                    self._woken.wait_for(lambda: self._ending, delay_s)
                delay_s = min(_RETRY_LIMIT_S, 2 * delay_s)
            except Exception:
                logger.exception("the shipper failed")
                self._requests.ask(Cut.PLATFORM)
                return

    def _ship_some(self) -> None:
        while self._older and not self._fenced and not self._ending:
            self._ship_older(self._older[0])
            self._on_shipped(self._older.pop(0))
        for record in self._journal.read(self._next_seq, _BATCH):
            if self._ending or self._fenced:
                return
            self._ship(record)

    def _ship_older(self, entry: Entry) -> None:
        """A stored event of an earlier generation, whose journal is not here: what Redis lacks of it, SQL has."""
        snapshot, current = self._snapshots.at(entry.id)
        ship = partial(self._event_log.append, self._job_id, snapshot=snapshot, current=current)
        appended = ship(entry)
        if appended.answer is not Answer.BEHIND:
            return
        last = appended.last
        for missing in self._archive.archived(self._job_id, last, _BATCH):
            if missing.id >= entry.id or missing.id.generation != entry.id.generation:
                continue
            # Where SQL has lost some too, the event says so, and readers say `resync`.
            ship(replace(missing, gap=missing.id.seq > 1 and missing.prev != last), announce=False)
            last = missing.id
        ship(replace(entry, gap=entry.prev != last))

    def _ship(self, record: Record) -> None:
        self._snapshots.apply(record.changes)
        snapshot, current = self._snapshots.at(record.entry.id)
        if self._append(record.entry, snapshot, current) is Answer.FENCED:
            return
        if record.entry.id.seq == 1:  # the claim's own event: it stands in SQL as not yet announced
            self._on_shipped(record.entry)
        with self._woken:
            self._next_seq = record.entry.id.seq + 1
            self._woken.notify_all()

    def _append(self, entry: Entry, snapshot: bytes, current: bytes) -> Answer:
        appended = self._event_log.append(self._job_id, entry, snapshot=snapshot, current=current)
        if appended.answer is Answer.BEHIND:
            self._reship(appended.last, entry.id)
            appended = self._event_log.append(self._job_id, entry, snapshot=snapshot, current=current)
        if appended.answer is Answer.FENCED and entry.id.generation == self._journal.id_of(1).generation:
            with self._woken:
                self._fenced = True
                self._woken.notify_all()
            self._requests.ask(Cut.LEASE_LOST)
        return appended.answer

    def _reship(self, last: EventId, until: EventId) -> None:
        """Redis lost this generation's tail (wiped, or an older dump): ships its history again, without the feed."""
        seq = last.seq + 1 if last.generation == until.generation else 1
        logger.warning("Redis lost events; shipping them again", job_id=self._job_id, first=seq, last=until.seq - 1)
        while seq < until.seq:
            records = self._journal.read(seq, min(_BATCH, until.seq - seq))
            if not records or self._ending:
                return
            for record in records:
                snapshot, current = self._snapshots.at(record.entry.id)
                self._event_log.append(self._job_id, record.entry, snapshot=snapshot, current=current, announce=False)
                seq += 1
