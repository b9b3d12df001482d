"""Follow all jobs over one WebSocket: the newest state of each, through reconnects, and every end."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from epochcast.errors import EpochcastError, NotFound, Unreachable, may_pass
from epochcast.events import Complete, Error, EventId, Progress, is_terminal
from epochcast.following import Connected, OnNotice, Pace, Reconnecting, unnoticed
from epochcast.jobs import TrainingJob
from epochcast.polling import message_of
from epochcast.subscription import (
    LASTED_S,
    Ending,
    Finished,
    Lost,
    NoWebSocket,
    after_close,
    after_handshake,
    receive,
    subscribed,
)
from epochcast.transport import Transport, jittered, understood

JobMessage = Progress | Complete | Error
# Few: the server must notice a slow reader, to give it newer states instead of older ones.
MOST_WAITING = 64
ENDED_KEPT = 10_000


async def watch_fleet(
    transport: Transport, *, on_notice: OnNotice = unnoticed, pace: Pace | None = None
) -> AsyncGenerator[JobMessage, None]:
    """A `progress` of each job that has not ended, then the messages of all jobs as they come; for ever.

    Those of a job come in order and none twice; a slow reader gets a job's newer state instead of its older one, and
    every end. After a lost connection come the states that have changed, and the ends of jobs that were told before.
    Raises NotAuthenticated (also when the token expires later), and Unreachable when the server was never reached or
    WebSocket can't be had; once it was reached, a lost server is waited for.
    """
    pace = pace or Pace()
    known = _Known()
    tries, was_reached = 0, False
    while True:
        connected_at: float | None = None
        ending: Ending
        try:
            async with subscribed(transport.connection, "/training-jobs/ws", pace, most_waiting=MOST_WAITING) as socket:
                on_notice(Connected())
                connected_at = time.monotonic()
                async with aclosing(_told(transport, socket, known, pace)) as messages:
                    async for message in messages:
                        tries, was_reached = 0, True
                        yield message
        except ConnectionClosed as error:
            ending = after_close(error.rcvd, "the jobs' stream")
        except (OSError, InvalidHandshake) as error:
            ending = after_handshake(error)
        if connected_at is not None and time.monotonic() - connected_at > LASTED_S:
            tries, was_reached = 0, True  # silent is not broken: there may be no job
        tries += 1
        match ending:
            case Finished():  # by something on the way: this stream has no end
                lost = Lost("the connection was closed")
            case Lost() if was_reached or tries < pace.first_tries:
                lost = ending
            case Lost(reason=reason) | NoWebSocket(reason=reason):
                raise Unreachable(
                    f"{transport.connection.url}: no stream of all jobs can be had ({reason}); jobs() asks without one"
                )
        delay_s = jittered(tries, pace.backoff_s, pace.longest_backoff_s, lost.at_least_s)
        on_notice(Reconnecting(delay_s, lost.reason))
        await asyncio.sleep(delay_s)


async def _told(
    transport: Transport, socket: ClientConnection, known: "_Known", pace: Pace
) -> AsyncGenerator[JobMessage, None]:
    """What one connection brings that is new. Raises ConnectionClosed at its end."""
    # Jobs that ended while nobody listened: the server begins with those that have not ended.
    unsure = set(known.active)
    look_at = time.monotonic() + pace.settle_s if unsure else None
    while True:
        if look_at is not None and time.monotonic() >= look_at:
            look_at = None
            try:
                for job_id in sorted(unsure):
                    if (state := await _state(transport, job_id)) is not None and known.takes(state):
                        yield state
                    unsure.discard(job_id)
            except EpochcastError as error:
                if not may_pass(error):
                    raise
                look_at = time.monotonic() + pace.settle_s
        message = await receive(socket, None if look_at is None else max(0.0, look_at - time.monotonic()))
        if message is None or message.type == "log":
            continue
        unsure.discard(message.job_id)
        if known.takes(message):
            yield message


async def _state(transport: Transport, job_id: int) -> JobMessage | None:
    """None: it isn't there any more."""
    try:
        answer = await transport.json("GET", f"/training-jobs/{job_id}")
    except NotFound:
        return None
    with understood("job"):
        return message_of(TrainingJob.model_validate(answer, extra="ignore"))


class _Known:
    """The newest event taken of each job; of those that have ended the last ones, whose end may be repeated late."""

    def __init__(self) -> None:
        self.active: dict[int, EventId] = {}
        self._ended: dict[int, EventId] = {}

    def takes(self, message: JobMessage) -> bool:
        """Whether `message` is news of its job."""
        job_id, message_id = message.job_id, EventId.parse(message.id)
        before = self.active.get(job_id) or self._ended.get(job_id)
        if before is not None and message_id <= before:
            return False
        self.active.pop(job_id, None)
        self._ended.pop(job_id, None)
        (self._ended if is_terminal(message) else self.active)[job_id] = message_id
        if len(self._ended) > ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
        return True
