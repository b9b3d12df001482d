"""What has happened to a job: its events, logs, metrics and attempts."""

from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import PlainTextResponse, Response

from api import connections
from api.auth import Reader, visible_to
from api.downsampling import downsample
from api.event_stream import KIND, EventStream
from api.gateway import Gateway, Here
from api.polls import LongPoll
from api.routes.parameters import After, JobId, LastEventId, QueryJobIds, Wait, event_id
from api.telemetry import stays_open
from epochcast.answers import Attempt, EventPage, LogPage
from epochcast.events import EventId
from shared import queries
from shared.database import DatabaseUnavailable
from shared.event_log import Entry
from shared.queries import Columns, Point, Unit, columns_of
from shared.rows import moment
from shared.tokens import Identity

router = APIRouter(prefix="/training-jobs", tags=["history"])

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
MaxPoints = Annotated[int | None, Query(ge=2, le=100_000)]


@router.get("/metrics")
async def metrics_of_jobs(
    gateway: Here, identity: Reader, job_ids: QueryJobIds, max_points: MaxPoints = None
) -> dict[str, list[dict[str, Any]]]:
    """The histories of several jobs, to compare them: `{"items": [{"job_id": 1, "metrics": {…}}]}`."""
    items = []
    for job_id in dict.fromkeys(job_ids):
        await gateway.check_owner(job_id, identity)
        items.append({"job_id": job_id, "metrics": await _columns(gateway, job_id, max_points)})
    return {"items": items}


@router.get("/events", response_class=Response)
async def events_of_all(gateway: Here, identity: Reader) -> Response:
    """Server-Sent Events of every job that the token may see, without log lines, as on the socket of all jobs."""
    relay = gateway.relay
    owner = visible_to(identity)
    return EventStream(relay, identity.expires_at, lambda peer: relay.follow_fleet(peer, owner), nullcontext())


@router.get("/{job_id}/metrics")
async def metrics(
    gateway: Here,
    identity: Reader,
    job_id: JobId,
    max_points: MaxPoints = None,
    by: Unit = "epoch",
) -> Columns:
    """The history per epoch, by column; `by=step`: the reports that named a step."""
    await gateway.check_owner(job_id, identity)
    return await _columns(gateway, job_id, max_points, by)


async def _columns(gateway: Gateway, job_id: int, max_points: int | None, by: Unit = "epoch") -> Columns:
    points: list[Point] = []
    page: list[Point] | None = None
    while page is None or len(page) == queries.POINTS_AT_ONCE:
        page = await gateway.record(gateway.queries.points, job_id, by, after=points[-1] if points else None)
        points += page
    return await gateway.in_thread(_fewer, points, by, max_points)


def _fewer(points: list[Point], by: Unit, max_points: int | None) -> Columns:
    columns = columns_of(points, by)
    return columns if max_points is None else downsample(columns, max_points)


@router.get("/{job_id}/events", response_model=EventPage)
async def events(
    request: Request,
    gateway: Here,
    identity: Reader,
    job_id: JobId,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
    wait: Wait = 0,
    last_event_id: LastEventId = None,
) -> Response:
    """The event log after a cursor. `resync`: some of what the cursor asked for is gone; what follows it is here.

    `wait`: where there are none, and the job has not ended, answers at the next or after so many seconds.
    `Accept: text/event-stream`: an answer that stays open, with the same messages as the socket.
    """
    owner = await gateway.check_owner(job_id, identity)
    if KIND in request.headers.get("accept", ""):
        # An EventSource that comes back has the address it began with, and the newer cursor in the header.
        return await _stream(gateway, identity, job_id, last_event_id or after)
    reading = Reading(gateway, job_id, event_id(after))
    if wait == 0:
        return _page(await _payloads(reading, limit), reading)
    stays_open(request.scope)
    with LongPoll(gateway.polls.follow(job_id, owner), wait, connections.of(request.scope)) as poll:
        while True:
            poll.listen()
            payloads = await _payloads(reading, limit)
            if payloads or reading.has_hole or reading.has_ended or poll.is_over:
                return _page(payloads, reading)
            await poll.change()


async def _payloads(reading: "Reading", limit: int) -> list[bytes]:
    payloads = []
    async for entry in reading:
        payloads.append(entry.payload)
        if len(payloads) == limit:
            break
    return payloads


async def _stream(gateway: Gateway, identity: Identity, job_id: int, cursor: str | None) -> Response:
    after = None if cursor is None else event_id(cursor)
    relay = gateway.relay
    record = await relay.find(job_id, visible_to(identity))
    if after is not None and record.status.is_terminal and after >= EventId.parse(record.last_event_id or "0"):
        # Nothing will come: the one answer after which an EventSource doesn't try again.
        return Response(status_code=204)
    return EventStream(
        relay, identity.expires_at, lambda peer: relay.follow(peer, record, after), relay.place(record.job_id)
    )


@router.get("/{job_id}/logs", response_model=LogPage)
async def logs(
    request: Request,
    gateway: Here,
    identity: Reader,
    job_id: JobId,
    after: After = None,
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "DEBUG",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Response:
    """Log lines of `level` and above: JSON, or text where `Accept` asks for text/plain."""
    await gateway.check_owner(job_id, identity)
    reading = Reading(gateway, job_id, event_id(after))
    wanted = LEVELS[LEVELS.index(level) :]
    payloads = []
    async for entry in reading:
        if entry.type == "log" and (level == "DEBUG" or orjson.loads(entry.payload)["level"] in wanted):
            payloads.append(entry.payload)
            if len(payloads) == limit:
                break
    if "text/plain" in request.headers.get("accept", ""):
        return PlainTextResponse("".join(map(_text_line, payloads)))
    return _page(payloads, reading)


class Reading:
    """The entries of a job's log after a cursor, in order, to its end; remembers how far it came."""

    def __init__(self, gateway: Gateway, job_id: int, cursor: EventId) -> None:
        self._gateway = gateway
        self._job_id = job_id
        self.cursor = cursor
        self.has_hole = False
        self.has_ended = False
        """The job has, and everything was read."""

    async def __aiter__(self) -> AsyncIterator[Entry]:
        """Raises DatabaseUnavailable when nobody can tell whether there is more."""
        started = self.cursor
        while True:
            page = await self._gateway.history.after(self._job_id, self.cursor)
            if page.is_end:
                self.has_ended = page.standing is not None and page.standing.is_terminal
                if page.standing is None and self.cursor == started:
                    raise DatabaseUnavailable("SQL is away and the stream has nothing")
                return
            if page.resync_at is not None:
                self.has_hole = True
                self.cursor = page.resync_at
            for entry in page.entries:
                self.cursor = entry.id
                yield entry


def _page(payloads: list[bytes], reading: Reading) -> Response:
    """The worker's own bytes, joined: an event is never encoded a second time."""
    tail = orjson.dumps({"next_after": str(reading.cursor), "resync": reading.has_hole})
    return Response(b'{"items":[' + b",".join(payloads) + b"]," + tail[1:], media_type="application/json")


def _text_line(payload: bytes) -> str:
    event = orjson.loads(payload)
    return f"{event['timestamp']} {event['level']} {event['message']}\n"


class AttemptList(BaseModel):
    items: list[Attempt]


@router.get("/{job_id}/attempts")
async def attempts(gateway: Here, identity: Reader, job_id: JobId) -> AttemptList:
    """Each attempt: where it ran, from when to when, and why it ended."""
    await gateway.check_owner(job_id, identity)
    rows = await gateway.record(gateway.queries.attempts, job_id)
    return AttemptList(items=[_attempt(row) for row in rows])


def _attempt(row: dict[str, Any]) -> Attempt:
    ended = None if row["ended_at"] is None else moment(row["ended_at"])
    return Attempt.model_validate({**row, "started_at": moment(row["started_at"]), "ended_at": ended})
