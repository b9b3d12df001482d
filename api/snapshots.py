"""A job's JSON for pollers: the worker's own snapshot where Redis has one, else the record."""

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from redis.exceptions import RedisError

from api.gateway import Gateway
from epochcast.events import EventId
from epochcast.jobs import TERMINAL, Status, TrainingJob
from shared.database import DatabaseUnavailable

# A running job says nothing for a whole epoch; beyond this its snapshot is compared with the record, because a Redis
# that came back from an older dump has an older snapshot.
_FRESH = timedelta(seconds=5)


async def job_json(gateway: Gateway, job_id: int) -> bytes:
    """The job as `GET` returns it. The caller has checked whose it is. Raises JobNotFound, DatabaseUnavailable."""
    snapshot = await _snapshot(gateway, job_id)
    if snapshot is None:
        return encode(await gateway.record(gateway.store.get, job_id))
    state = orjson.loads(snapshot)
    # A queued job's place changes without any event.
    if state["status"] == Status.QUEUED:
        return encode(await gateway.record(gateway.store.get, job_id))
    if state["status"] in TERMINAL or _age(state) < _FRESH:
        return snapshot
    return await _newer(gateway, job_id, snapshot, state)


async def _snapshot(gateway: Gateway, job_id: int) -> bytes | None:
    try:
        return await gateway.reader.snapshot(job_id)
    except RedisError:
        return None


def _age(state: dict[str, Any]) -> timedelta:
    return datetime.now(UTC) - datetime.fromisoformat(state["timestamp"])


async def _newer(gateway: Gateway, job_id: int, snapshot: bytes, state: dict[str, Any]) -> bytes:
    try:
        job = await gateway.record(gateway.store.get, job_id)
    except DatabaseUnavailable:
        return snapshot
    known = EventId.parse(state["last_event_id"] or "0")
    recorded = EventId.parse(job.last_event_id or "0")
    return encode(job) if recorded > known else snapshot


def encode(job: TrainingJob) -> bytes:
    return job.model_dump_json().encode()
