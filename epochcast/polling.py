"""Follow a job without WebSocket: the same messages from REST, for networks that carry nothing else."""

import asyncio
from collections.abc import AsyncGenerator
from time import monotonic
from typing import assert_never

from pydantic import TypeAdapter

from epochcast.errors import EpochcastError, may_pass
from epochcast.events import Complete, Error, Event, EventId, Progress
from epochcast.following import Connected, Message, OnNotice, Pace, Place, Reconnecting
from epochcast.jobs import JobError, Status, TrainingJob
from epochcast.transport import Query, Transport, jittered, understood

_EVENTS: TypeAdapter[list[Message]] = TypeAdapter(list[Event])


async def poll(
    transport: Transport, job_id: int, place: Place, on_notice: OnNotice, pace: Pace
) -> AsyncGenerator[Message, None]:
    """What `watch` yields from `place` on. Raises what the first request raises; later failures are waited out."""
    tries = 0
    while True:
        started = monotonic()
        try:
            job, messages = await _news(transport, job_id, place, pace)
        except EpochcastError as error:
            if not place.was_reached or not may_pass(error):
                raise
            tries += 1
            delay_s = jittered(tries, pace.backoff_s, pace.longest_backoff_s)
            on_notice(Reconnecting(delay_s, str(error)))
            await asyncio.sleep(delay_s)
            continue
        if tries:
            on_notice(Connected())
        tries = 0
        told = 0
        for message in messages:
            if place.takes(message):
                told += 1
                yield message
        if _is_over(job, place, told):
            return
        if not told:  # a server without long polls answers at once
            await asyncio.sleep(max(0.0, pace.poll_every_s - (monotonic() - started)))


async def _news(transport: Transport, job_id: int, place: Place, pace: Pace) -> tuple[TrainingJob, list[Message]]:
    """The job, once it has changed or the long poll ran out, and what came after `place`."""
    path = f"/training-jobs/{job_id}"
    if place.after is None:
        job = _job(await transport.json("GET", path))
        return job, [message_of(job)]
    # The first time there may be history already; after that, wait for what is new.
    wait: Query | None = {"wait": pace.long_poll_s, "after": str(place.after)} if place.was_reached else None
    job = _job(await transport.json("GET", path, query=wait, timeout_s=pace.long_poll_s + 15.0))
    answer = await transport.json("GET", f"{path}/events", query={"after": str(place.after)})
    with understood("events"):
        events = _EVENTS.validate_python(answer["items"])
    return job, [_hole(job, place.after), *events] if answer.get("resync") else events


def _hole(job: TrainingJob, after: EventId) -> Progress:
    """Says that messages after `after` are gone for ever, as the socket says it."""
    state = job.model_dump(include=Progress.model_fields.keys() - {"id"})
    return Progress.model_validate({**state, "id": str(after), "resync": True})


def _job(content: object) -> TrainingJob:
    with understood("job"):
        return TrainingJob.model_validate(content, extra="ignore")


def _is_over(job: TrainingJob, place: Place, told: int) -> bool:
    """Whether a finished job's last event has been told, or (lost with its Redis) never will be."""
    if not job.status.is_terminal:
        return False
    if job.last_event_id is None or place.after is None or not told:
        return True
    return place.after >= EventId.parse(job.last_event_id)


def message_of(job: TrainingJob) -> Progress | Complete | Error:
    """The message a new subscriber gets first: the job's state, or its terminal message."""
    common = {
        "id": job.last_event_id or "0-0",
        "job_id": job.job_id,
        "status": job.status,
        "progress": job.progress,
        "current_epoch": job.current_epoch,
        "total_epochs": job.total_epochs,
        "timestamp": job.timestamp,
    }
    match job.status:
        case Status.SUCCEEDED:
            return Complete.model_validate(
                {**common, "model_id": job.model_id, "final_metrics": job.final_metrics or {}}
            )
        case Status.FAILED:
            message = job.error_message or "failed"
            error = job.error or JobError(type="platform", message=message)
            return Error.model_validate({**common, "error_message": message, "error": error})
        case Status.QUEUED | Status.RUNNING | Status.STOPPED:
            state = job.model_dump(include={"current_loss", "metrics", "eta_s", "attempt", "stop_requested"})
            return Progress.model_validate({**common, **state})
        case _:
            assert_never(job.status)
