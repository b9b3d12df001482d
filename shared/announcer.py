"""The announcer: takes stored transition events that no live owner will ship to Redis, in order, with what it lost."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import redis
import structlog

from epochcast.events import EventId, encode
from shared.archive import archived_events
from shared.database import Database, DatabaseUnavailable
from shared.event_log import Answer, Entry, Writer
from shared.rows import progress_message
from shared.store import Store

logger = structlog.get_logger(__name__)

# Redis refuses everybody: the next job would fare no better.
_AWAY = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    OSError,
)


class Announcer:
    """Any number may run at once: the log answers `duplicate` to all but the first."""

    def __init__(
        self, database: Database, event_log: Writer, *, page: int = 200, reshipped_at_once: int = 2000
    ) -> None:
        """`page`: events read from SQL at once. `reshipped_at_once`: how much of a history one pass ships again."""
        self._database = database
        self._store = Store(database)
        self._event_log = event_log
        self._page = page
        self._reshipped_at_once = reshipped_at_once

    def run(self) -> None:
        """One pass over every job. Raises DatabaseUnavailable, and redis.RedisError once Redis is away."""
        last_job = 0
        while waiting := self._store.unannounced(self._page, after=last_job):
            for job_id, events in groupby(waiting, key=lambda one: one.job_id):
                last_job = job_id
                try:
                    self._announce(job_id, [one.entry for one in events])
                except (DatabaseUnavailable, *_AWAY):
                    raise
                except Exception:
                    # One job's broken record or key must not silence the others.
                    logger.exception("event can't be announced", job_id=job_id)

    def _announce(self, job_id: int, entries: list[Entry]) -> None:
        job = self._store.get(job_id)
        snapshot, current = job.model_dump_json().encode(), encode(progress_message(job))
        for entry in entries:
            appended = self._event_log.append(job_id, entry, snapshot=snapshot, current=current)
            if appended.answer is Answer.BEHIND:
                entry = self._reship(job_id, appended.last, entry)
                appended = self._event_log.append(job_id, entry, snapshot=snapshot, current=current)
            if appended.answer is Answer.BEHIND:
                # The next pass goes on from here; a later event would fence what is still missing.
                return
            # `duplicate` and `fenced` mean that Redis has this event or is further.
            self._store.mark_announced(job_id, entry.id)

    def _reship(self, job_id: int, last: EventId, until: Entry) -> Entry:
        """Ships what Redis lost of the generation before `until`, without the feed. Returns `until`, its gap said."""
        logger.warning("Redis lost events; shipping them again from SQL", job_id=job_id, last=str(last))
        before = max(last, EventId(until.id.generation, 0))
        for count, missing in enumerate(self._missing(job_id, before, until)):
            if count == self._reshipped_at_once:
                return until
            entry = _following(before, missing)
            if self._event_log.append(job_id, entry, snapshot=b"", current=b"", announce=False).answer is Answer.BEHIND:
                return until  # it has lost more meanwhile
            before = entry.id
        return _following(before, until)

    def _missing(self, job_id: int, cursor: EventId, until: Entry) -> Iterator[Entry]:
        while True:
            with self._database.read() as connection:
                found = archived_events(connection, job_id, cursor)
            for entry in found:
                if entry.id >= until.id:
                    return
                yield entry
            if not found:
                return
            cursor = found[-1].id


def _following(before: EventId, entry: Entry) -> Entry:
    """`entry` behind `before`: what stood between them is lost for good when its predecessor isn't there."""
    is_first = entry.id.seq == 1
    return entry if is_first or entry.prev == before else replace(entry, gap=True)
