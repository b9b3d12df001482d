"""The event log: one Redis stream per job with its snapshot, written by one Lua call and read by cursor.

The stream's ids are explicit (`<generation>-<seq>`), so a retry is seen as a duplicate, a zombie of an older generation
is refused, and a Redis that lost its tail says where it stands. History, snapshot and live message change together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import redis
import redis.asyncio

from epochcast.events import BEFORE_ALL, EventId

FEED_PATTERN = "ec:{*}:live"


def log_key(job_id: int) -> str:
    return f"ec:{{{job_id}}}:log"


def snapshot_key(job_id: int) -> str:
    """The job's JSON as `GET` returns it."""
    return f"ec:{{{job_id}}}:snapshot"


def current_key(job_id: int) -> str:
    """The job's state as a ready first `progress` message."""
    return f"ec:{{{job_id}}}:current"


def slots_key(job_id: int) -> str:
    """The sorted set of the job's connected subscribers."""
    return f"ec:{{{job_id}}}:slots"


def feed_channel(job_id: int) -> str:
    return f"ec:{{{job_id}}}:live"


def nudge_channel(host: str) -> str:
    """Where a host's agent hears that a stop was asked."""
    return f"ec:host:{host}:nudge"


def job_of_feed(channel: bytes) -> int:
    return int(channel[4 : channel.index(b"}")])


@dataclass(frozen=True, slots=True)
class Entry:
    """One event with what a relay must know about it, beside the bytes that it forwards."""

    id: EventId
    prev: EventId
    """The event before it; another generation's when this is the first of its own."""
    type: str
    status: str
    owner: str
    payload: bytes
    gap: bool = False
    """True when events between `prev` and this one are lost for good: readers then say `resync`."""

    @property
    def is_terminal(self) -> bool:
        return self.type in ("complete", "error") or (self.type == "progress" and self.status == "stopped")

    @property
    def is_plain(self) -> bool:
        """It only follows the one before: it ends nothing and begins nothing, and nothing lacks before it."""
        return self.type in ("progress", "log") and self.status == "running" and not self.gap


class Answer(StrEnum):
    """What Redis said to an append."""

    OK = "ok"
    DUPLICATE = "duplicate"
    FENCED = "fenced"
    BEHIND = "behind"


@dataclass(frozen=True, slots=True)
class Appended:
    """`last` is the newest id in the stream (for `behind`: re-ship from the one after it)."""

    answer: Answer
    last: EventId


# One atomic step, so that history (XADD), snapshot (SET) and live feed (PUBLISH) can't disagree.
# The predecessor is checked only inside a generation: the first event of one is never `behind`, because what came
# before it belongs to another writer and readers fill that from SQL.
# Redis 6.2 commands only.
_APPEND = """
local log, snapshot, current = KEYS[1], KEYS[2], KEYS[3]
local generation, seq, prev = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local gap, announce, expire_s = ARGV[7], ARGV[8], tonumber(ARGV[9])
local id = ARGV[1] .. '-' .. ARGV[2]
local last = '0-0'
local tail = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
if tail[1] then last = tail[1][1] end
local dash = string.find(last, '-', 1, true)
local last_generation, last_seq = tonumber(string.sub(last, 1, dash - 1)), tonumber(string.sub(last, dash + 1))
if last_generation > generation then return {'fenced', last} end
if last_generation == generation and last_seq >= seq then return {'duplicate', last} end
if seq > 1 and gap == '' and last ~= prev then return {'behind', last} end
redis.call('XADD', log, 'MAXLEN', '~', ARGV[10], id,
  'p', prev, 't', ARGV[4], 's', ARGV[5], 'o', ARGV[6], 'g', gap, 'b', ARGV[11])
if announce == '1' then
  redis.call('SET', snapshot, ARGV[12])
  redis.call('SET', current, ARGV[13])
  local header = table.concat({id, prev, ARGV[4], ARGV[5], gap == '' and '-' or gap, ARGV[6]}, ' ')
  redis.call('PUBLISH', ARGV[14], table.concat({ARGV[15] == '1' and id or '', header, ARGV[11]}, '\\n'))
end
for _, key in ipairs({log, snapshot, current}) do
  if expire_s > 0 then redis.call('EXPIRE', key, expire_s) else redis.call('PERSIST', key) end
end
return {'ok', id}
"""


_LAST_IDS = """
local ids = {}
for index, log in ipairs(KEYS) do
  local rows = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
  ids[index] = rows[1] and rows[1][1] or ''
end
return ids
"""
# By one call: a call each, even in one pipeline, was a fifth of an idle gateway's CPU (2026-11-29).
_LOGS_AT_ONCE = 200


class Writer(Protocol):
    """What a supervisor and the announcer need of the event log."""

    def append(
        self, job_id: int, entry: Entry, *, snapshot: bytes, current: bytes, announce: bool = True
    ) -> Appended: ...


class EventLog:
    """The writing side. Every method raises redis.RedisError when Redis is away or refuses (full)."""

    def __init__(self, client: redis.Redis, *, kept_per_job: int = 10_000, kept_s: int = 604_800) -> None:
        self._client = client
        self._append = client.register_script(_APPEND)
        self._kept_per_job = kept_per_job
        self._kept_s = kept_s

    def append(self, job_id: int, entry: Entry, *, snapshot: bytes, current: bytes, announce: bool = True) -> Appended:
        """Appends `entry` after its predecessor. `announce=False` (re-shipping): history only, no live message."""
        answer, last = self._append(
            keys=[log_key(job_id), snapshot_key(job_id), current_key(job_id)],
            args=[
                entry.id.generation,
                entry.id.seq,
                str(entry.prev),
                entry.type,
                entry.status,
                entry.owner,
                "1" if entry.gap else "",
                "1" if announce else "0",
                self._kept_s if entry.is_terminal else 0,
                self._kept_per_job,
                entry.payload,
                snapshot,
                current,
                feed_channel(job_id),
                "1" if entry.is_plain else "",
            ],
        )
        return Appended(Answer(_text(answer)), EventId.parse(_text(last)))


class EventReader:
    """The reading side, for the gateway's event loop."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._last_ids: Any = client.register_script(_LAST_IDS)

    async def after(self, job_id: int, cursor: EventId, count: int = 500) -> list[Entry]:
        """Up to `count` events after `cursor`, oldest first. Holes show as a `prev` that isn't the event before."""
        start = f"({cursor}" if cursor != BEFORE_ALL else "-"
        rows: Any = await self._client.xrange(log_key(job_id), min=start, max="+", count=count)
        return [entry_of_row(row) for row in rows]

    async def last_id(self, job_id: int) -> EventId | None:
        rows: Any = await self._client.xrevrange(log_key(job_id), count=1)
        return EventId.parse(_text(rows[0][0])) if rows else None

    async def last_ids(self, job_ids: Sequence[int]) -> dict[int, EventId]:
        """As `last_id` for many jobs, some at once; those with an empty stream are left out."""
        ids: list[Any] = []
        for start in range(0, len(job_ids), _LOGS_AT_ONCE):
            ids += await self._last_ids(keys=[log_key(job_id) for job_id in job_ids[start : start + _LOGS_AT_ONCE]])
        return {job_id: EventId.parse(_text(last)) for job_id, last in zip(job_ids, ids, strict=True) if last}

    async def current(self, job_id: int) -> bytes | None:
        return _maybe_bytes(await self._client.get(current_key(job_id)))

    async def snapshot(self, job_id: int) -> bytes | None:
        return _maybe_bytes(await self._client.get(snapshot_key(job_id)))


def entry_of_row(row: tuple[Any, Any]) -> Entry:
    """An XRANGE row (client without decode_responses) as an Entry."""
    identifier, fields = row
    return Entry(
        id=EventId.parse(_text(identifier)),
        prev=EventId.parse(_text(fields[b"p"])),
        type=_text(fields[b"t"]),
        status=_text(fields[b"s"]),
        owner=_text(fields[b"o"]),
        payload=fields[b"b"],
        gap=fields[b"g"] != b"",
    )


def entry_of_feed(data: bytes) -> Entry:
    """A live message as an Entry: the id once more if it is plain, a header line, then the worker's own bytes.

    Workers of a version before 2026-11-30 send no first line; while they are updated, gateways are newer.
    """
    header, payload = data.split(b"\n", 1)
    if b" " not in header:
        header, payload = payload.split(b"\n", 1)
    identifier, prev, kind, status, gap, owner = header.decode().split(" ", 5)
    return Entry(EventId.parse(identifier), EventId.parse(prev), kind, status, owner, payload, gap != "-")


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _maybe_bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
