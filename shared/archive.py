"""The SQL side of the event log: transition events (written with their transition) and chunks of what was shipped.

Together they are one archive: a cursor is still served when Redis trimmed or lost the stream.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson
import sqlalchemy as sa

from epochcast.events import BEFORE_ALL, EventId
from shared.event_log import Entry
from shared.tables import event_chunks, jobs, transition_events

_CHUNKS_AT_ONCE = 10
_LOG_PREFIX = b'{"type":"log"'


@dataclass(frozen=True, slots=True)
class Chunk:
    """Events of one generation as they were shipped, oldest first."""

    first_seq: int
    last_seq: int
    payload: bytes


def chunk_of(entries: Sequence[Entry]) -> Chunk:
    return Chunk(entries[0].id.seq, entries[-1].id.seq, b"\n".join(entry.payload for entry in entries))


def store_chunk(connection: sa.Connection, job_id: int, generation: int, chunk: Chunk, now: float) -> None:
    """Adds what is new of a chunk; the caller has fenced the transaction.

    After a commit that nobody acknowledged the same events come again, perhaps with more behind them.
    """
    known = connection.execute(
        sa.select(sa.func.max(event_chunks.c.last_seq)).where(
            event_chunks.c.job_id == job_id, event_chunks.c.generation == generation
        )
    ).scalar_one()
    if known is not None and known >= chunk.last_seq:
        return
    if known is not None and known >= chunk.first_seq:
        chunk = _cut(chunk, known)
    connection.execute(
        event_chunks.insert().values(
            job_id=job_id,
            generation=generation,
            first_seq=chunk.first_seq,
            last_seq=chunk.last_seq,
            payload=chunk.payload,
            created_at=now,
        )
    )


def _cut(chunk: Chunk, known: int) -> Chunk:
    lines = chunk.payload.split(b"\n")
    new = [line for line in lines if EventId.parse(orjson.loads(line)["id"]).seq > known]
    return Chunk(known + 1, chunk.last_seq, b"\n".join(new))


def archived_bytes(connection: sa.Connection, job_id: int) -> int:
    total = connection.execute(
        sa.select(sa.func.sum(sa.func.length(event_chunks.c.payload))).where(event_chunks.c.job_id == job_id)
    ).scalar_one()
    return int(total or 0)


def trim(connection: sa.Connection, job_id: int, limit_bytes: int) -> int:
    """Brings a job's archive under `limit_bytes`: oldest logs go first, then oldest chunks. Returns the bytes left."""
    left = archived_bytes(connection, job_id)
    rows = connection.execute(
        sa.select(event_chunks.c.generation, event_chunks.c.first_seq, event_chunks.c.payload)
        .where(event_chunks.c.job_id == job_id)
        .order_by(event_chunks.c.generation, event_chunks.c.first_seq)
    ).all()
    for drop_everything in (False, True):
        for row in rows:
            if left <= limit_bytes:
                return left
            one = (event_chunks.c.job_id == job_id) & (event_chunks.c.generation == row.generation)
            one &= event_chunks.c.first_seq == row.first_seq
            if drop_everything:
                size = connection.execute(sa.select(sa.func.length(event_chunks.c.payload)).where(one)).scalar_one()
                connection.execute(event_chunks.delete().where(one))
                left -= size
            else:
                kept = b"\n".join(line for line in row.payload.split(b"\n") if not line.startswith(_LOG_PREFIX))
                connection.execute(event_chunks.update().where(one).values(payload=kept))
                left -= len(row.payload) - len(kept)
    return left


def archived_events(connection: sa.Connection, job_id: int, cursor: EventId, count: int = 500) -> list[Entry]:
    """Up to `count` events after `cursor` that SQL has, oldest first; a hole shows as a `prev` that isn't there."""
    owner = connection.execute(sa.select(jobs.c.owner).where(jobs.c.id == job_id)).scalar_one_or_none()
    if owner is None:
        return []
    stored = _transitions(connection, job_id, cursor, owner, count)
    found = {entry.id: entry for entry in stored}
    # Beyond `count` transitions the chunks between them must not be skipped over: stop where the transitions stop.
    horizon = stored[-1].id if len(stored) == count else None
    for entry in _chunked(connection, job_id, cursor, owner):
        if horizon is not None and entry.id > horizon:
            break
        found.setdefault(entry.id, entry)
        if len(found) >= count + len(stored):
            break
    return [found[identifier] for identifier in sorted(found)][:count]


def _after(table: sa.Table, seq: sa.ColumnElement[int], cursor: EventId) -> sa.ColumnElement[bool]:
    generation = table.c.generation
    return sa.or_(generation > cursor.generation, sa.and_(generation == cursor.generation, seq > cursor.seq))


def _transitions(connection: sa.Connection, job_id: int, cursor: EventId, owner: str, count: int) -> list[Entry]:
    table = transition_events
    rows = connection.execute(
        sa.select(table)
        .where(table.c.job_id == job_id, _after(table, table.c.seq, cursor))
        .order_by(table.c.generation, table.c.seq)
        .limit(count)
    )
    return [transition_entry(row, owner) for row in rows]


def transition_entry(row: sa.Row[tuple[object, ...]], owner: str) -> Entry:
    values = row._mapping
    return Entry(
        id=EventId(values["generation"], values["seq"]),
        prev=EventId.parse(values["prev"]),
        type=values["type"],
        status=values["status"],
        owner=owner,
        payload=bytes(values["payload"]),
    )


def _chunked(connection: sa.Connection, job_id: int, cursor: EventId, owner: str) -> Iterator[Entry]:
    place = cursor
    while True:
        # Few at a time: a chunk may hold a second's thousand lines, and most readers want a page.
        rows = connection.execute(
            sa.select(event_chunks)
            .where(event_chunks.c.job_id == job_id, _after(event_chunks, event_chunks.c.last_seq, place))
            .order_by(event_chunks.c.generation, event_chunks.c.first_seq)
            .limit(_CHUNKS_AT_ONCE)
        ).all()
        for row in rows:
            place = EventId(row.generation, row.last_seq)
            for line in bytes(row.payload).split(b"\n"):
                if line:
                    entry = entry_of_line(line, owner)
                    if entry.id > cursor:
                        yield entry
        if len(rows) < _CHUNKS_AT_ONCE:
            return


def entry_of_line(payload: bytes, owner: str) -> Entry:
    """A stored event's bytes as an Entry; inside a generation its predecessor is the number before."""
    content = orjson.loads(payload)
    identifier = EventId.parse(content["id"])
    # The first event of a generation always stands among the transitions, with its real predecessor.
    prev = EventId(identifier.generation, identifier.seq - 1) if identifier.seq > 1 else BEFORE_ALL
    return Entry(identifier, prev, content["type"], content["status"], owner, payload)
