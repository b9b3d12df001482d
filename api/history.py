"""A job's events after a cursor: from its stream, and from SQL where the stream has holes or Redis is away."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import redis.asyncio
import structlog
from pydantic import ValidationError
from redis.exceptions import RedisError

from api.standing import Standing, standings
from api.threads import Batches, in_thread
from epochcast.events import EventId, Progress, decode, encode
from epochcast.jobs import TrainingJob
from shared.database import DatabaseUnavailable
from shared.event_log import Entry, EventReader
from shared.queries import Queries
from shared.rows import progress_message
from shared.store import Store

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Page:
    """What comes next after a cursor.

    `entries` follow the cursor without a hole, or, where `resync_at` is set, follow that id: what lies between the
    cursor and it is lost. No entries and no `resync_at`: this is the end for now, and `standing` is what SQL says
    (None: SQL is away).
    """

    entries: Sequence[Entry] = field(default=())
    resync_at: EventId | None = None
    standing: Standing | None = None

    @property
    def is_end(self) -> bool:
        return not self.entries and self.resync_at is None


def gapless(cursor: EventId, entries: Sequence[Entry]) -> Sequence[Entry]:
    """The leading entries that follow `cursor` without a hole.

    A predecessor before the cursor is no hole: a new generation names the last event that SQL knew of, and the
    stream may have had later ones.
    """
    before = cursor
    for index, entry in enumerate(entries):
        if entry.gap or entry.prev > before:
            return entries[:index]
        before = entry.id
    return entries


def just_before(identifier: EventId) -> EventId:
    """A cursor after which `identifier` is the next event."""
    return EventId(identifier.generation, identifier.seq - 1)


class History:
    """Reads for the relay. Outages of Redis or SQL are answered with what the other one has."""

    def __init__(self, client: redis.asyncio.Redis, store: Store, queries: Queries) -> None:
        self._reader = EventReader(client)
        self._store = store
        self._queries = queries
        self._standings = Batches[int, Standing](partial(standings, queries.database))

    async def after(self, job_id: int, cursor: EventId) -> Page:
        stream = await self._stream(job_id, cursor)
        if stream:
            return await self._from_stream(job_id, cursor, stream)
        standing = await self.standing(job_id)
        if standing is None or standing.last <= cursor:
            return Page(standing=standing)
        if stream is not None and not standing.is_terminal and await self.last_id(job_id) is not None:
            # Redis works and knows the job: a generation that SQL has beyond it is about to be announced, and reading
            # ahead could step over events that the attempt before is still shipping. Within a generation it can't.
            own = [entry for entry in await self._archived(job_id, cursor) if entry.id.generation == cursor.generation]
            return Page(gapless(cursor, own), standing=standing)
        return await self._from_archive(job_id, cursor, standing)

    async def _stream(self, job_id: int, cursor: EventId) -> list[Entry] | None:
        """None: Redis is away."""
        try:
            return await self._reader.after(job_id, cursor)
        except (RedisError, OSError):
            return None

    async def _from_stream(self, job_id: int, cursor: EventId, stream: list[Entry]) -> Page:
        if ready := gapless(cursor, stream):
            return Page(ready)
        first = stream[0]
        if not first.gap:
            missing = [entry for entry in await self._archived(job_id, cursor) if entry.id < first.id]
            if ready := gapless(cursor, missing):
                return Page(ready)
        return Page([first], resync_at=first.prev)

    async def _from_archive(self, job_id: int, cursor: EventId, standing: Standing) -> Page:
        if ready := gapless(cursor, await self._archived(job_id, cursor)):
            return Page(ready, standing=standing)
        # The terminal event is always stored; the rest of the history has gone.
        end = just_before(standing.last) if standing.is_terminal else standing.last
        return Page(resync_at=end if end > cursor else None, standing=standing)

    async def _archived(self, job_id: int, cursor: EventId) -> list[Entry]:
        try:
            return await in_thread(lambda: self._queries.archived(job_id, cursor))
        except DatabaseUnavailable as error:
            logger.warning("history: SQL is away", job_id=job_id, error=str(error))
            return []

    async def standing(self, job_id: int) -> Standing | None:
        """None: SQL is away."""
        try:
            return await self._standings.get(job_id)
        except DatabaseUnavailable:
            return None

    async def last_id(self, job_id: int) -> EventId | None:
        """The newest id of the stream; None: it is empty, or Redis is away."""
        try:
            return await self._reader.last_id(job_id)
        except (RedisError, OSError):
            return None

    async def last_ids(self, job_ids: Sequence[int]) -> dict[int, EventId]:
        """By job, the newest id of its stream; without those that have none, and without all when Redis is away."""
        try:
            return await self._reader.last_ids(job_ids)
        except (RedisError, OSError):
            return {}

    async def state(self, job_id: int, record: TrainingJob | None = None) -> tuple[Progress, bytes] | None:
        """The job's state now with the bytes of its message: the newer of Redis' and the record's. None: neither."""
        both = (await self._published(job_id), await self._recorded(job_id, record))
        found = [message for message in both if message is not None]
        # Between equals the first: its bytes are the worker's own.
        return max(found, key=lambda message: EventId.parse(message[0].id), default=None)

    async def _published(self, job_id: int) -> tuple[Progress, bytes] | None:
        try:
            payload = await self._reader.current(job_id)
            message = decode(payload) if payload is not None else None
        except (RedisError, OSError):
            return None
        except ValidationError as error:
            logger.error("history: the current message is unreadable", job_id=job_id, error=str(error))
            return None
        return (message, payload) if isinstance(message, Progress) and payload is not None else None

    async def _recorded(self, job_id: int, record: TrainingJob | None) -> tuple[Progress, bytes] | None:
        try:
            if record is None:
                record = await in_thread(lambda: self._store.get(job_id))
        except DatabaseUnavailable:
            return None
        message = progress_message(record)
        return message, encode(message)
