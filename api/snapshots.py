"""A job's JSON for pollers: the worker's own snapshot where Redis has one, else the record."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import orjson
from redis.exceptions import RedisError

from api.gateway import Gateway
from epochcast.events import EventId
from epochcast.jobs import Status, TrainingJob
from shared.database import DatabaseUnavailable

# A running job says nothing for a whole epoch; beyond this its snapshot is compared with the record, because a Redis
# that came back from an older dump has an older snapshot.
_FRESH = timedelta(seconds=5)


async def job_json(gateway: Gateway, job_id: int) -> bytes:
    """The job as `GET` returns it. The caller has checked whose it is. Raises JobNotFound, DatabaseUnavailable."""
    snapshot = await _snapshot(gateway, job_id)
    # A queued job's place changes without any event.
    if snapshot is None or snapshot.status is Status.QUEUED:
        return encode(await gateway.record(gateway.store.get, job_id))
    if snapshot.status.is_terminal or datetime.now(UTC) - snapshot.written_at < _FRESH:
        return snapshot.payload
    try:
        job = await gateway.record(gateway.store.get, job_id)
    except DatabaseUnavailable:
        return snapshot.payload
    return encode(job) if EventId.parse(job.last_event_id or "0") > snapshot.last else snapshot.payload


@dataclass(frozen=True, slots=True)
class _Snapshot:
    payload: bytes
    status: Status
    last: EventId
    written_at: datetime


async def _snapshot(gateway: Gateway, job_id: int) -> _Snapshot | None:
    """None: Redis is away, has none, or has one that another version wrote."""
    try:
        payload = await gateway.reader.snapshot(job_id)
    except RedisError:
        return None
    if payload is None:
        return None
    try:
        state = orjson.loads(payload)
        last, written_at = EventId.parse(state["last_event_id"]), datetime.fromisoformat(state["timestamp"])
        return _Snapshot(payload, Status(state["status"]), last, written_at)
    except (ValueError, KeyError, TypeError):
        return None


def encode(job: TrainingJob) -> bytes:
    return job.model_dump_json().encode()
