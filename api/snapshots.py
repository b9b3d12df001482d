"""A job's JSON for pollers: the worker's own snapshot where Redis has one, else the record."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING

import orjson
from redis.exceptions import RedisError
from starlette.responses import Response
from starlette.types import Message

from epochcast.events import EventId
from epochcast.jobs import Status, TrainingJob
from shared.database import DatabaseUnavailable

if TYPE_CHECKING:
    from api.gateway import Gateway

# A running job says nothing for a whole epoch, an ended one nothing more; beyond this a snapshot is compared with the
# record, because a Redis that came back from an older dump has an older snapshot, of an ended job that was restarted
# since perhaps the end before.
_FRESH = timedelta(seconds=5)
_KIND = "application/json"
# What the CORS middleware says about every answer.
_VARY = (b"vary", b"Origin")


@dataclass(frozen=True)
class Answer:
    """The job as `GET` returns it.

    `is_live`: it is what the event log has, so that it stays right until the next event (a queued job's place changes
    without any). The messages are ASGI's, made once for everybody who asks.
    """

    payload: bytes
    last: EventId
    status: Status
    is_live: bool

    @cached_property
    def etag(self) -> bytes:
        """Strong: equal bytes and no others have it, whichever gateway answers."""
        return b'"%s"' % blake2b(self.payload, digest_size=12).hexdigest().encode()

    @cached_property
    def start(self) -> Message:
        length = str(len(self.payload)).encode()
        headers = [(b"content-length", length), (b"content-type", _KIND.encode()), (b"etag", self.etag), _VARY]
        return {"type": "http.response.start", "status": 200, "headers": headers}

    @cached_property
    def body(self) -> Message:
        return {"type": "http.response.body", "body": self.payload}

    @cached_property
    def unchanged(self) -> Message:
        return {"type": "http.response.start", "status": 304, "headers": [(b"etag", self.etag), _VARY]}

    def is_known(self, if_none_match: bytes | None) -> bool:
        """Whether the client has these bytes already (RFC 9110, 13.1.2)."""
        if if_none_match is None:
            return False
        known = (tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b","))
        return if_none_match == self.etag or if_none_match.strip() == b"*" or self.etag in known

    def response(self, if_none_match: str | None) -> Response:
        headers = {"ETag": self.etag.decode()}
        if self.is_known(if_none_match.encode() if if_none_match is not None else None):
            return Response(status_code=304, headers=headers)
        return Response(self.payload, headers=headers, media_type=_KIND)


async def read(gateway: "Gateway", job_id: int) -> Answer:
    """The job now. The caller has checked whose it is. Raises JobNotFound, DatabaseUnavailable."""
    snapshot = await _snapshot(gateway, job_id)
    # A queued job's place changes without any event.
    if snapshot is None or snapshot.status is Status.QUEUED:
        return _recorded(await gateway.record(gateway.store.get, job_id))
    if datetime.now(UTC) - snapshot.written_at < _FRESH:
        return snapshot.answer
    try:
        job = await gateway.record(gateway.store.get, job_id)
    except DatabaseUnavailable:
        return snapshot.answer
    return _recorded(job) if EventId.parse(job.last_event_id or "0") > snapshot.last else snapshot.answer


@dataclass(frozen=True, slots=True)
class _Snapshot:
    payload: bytes
    status: Status
    last: EventId
    written_at: datetime

    @property
    def answer(self) -> Answer:
        return Answer(self.payload, self.last, self.status, is_live=True)


async def _snapshot(gateway: "Gateway", job_id: int) -> _Snapshot | None:
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


def _recorded(job: TrainingJob) -> Answer:
    return Answer(encode(job), EventId.parse(job.last_event_id or "0"), job.status, is_live=False)


def encode(job: TrainingJob) -> bytes:
    return job.model_dump_json().encode()
