"""Follow a job over its WebSocket: every message once, through reconnects, until its terminal message."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from epochcast.following import Connected, Message, OnNotice, Pace, Place, Polling, Reconnecting, cursor, unnoticed
from epochcast.polling import poll
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
from epochcast.transport import Transport, jittered

# A reader that pauses for some epochs is not yet a slow consumer.
MOST_WAITING = 1024


async def watch(
    transport: Transport,
    job_id: int,
    *,
    after: str | None = None,
    on_notice: OnNotice = unnoticed,
    pace: Pace | None = None,
) -> AsyncGenerator[Message, None]:
    """The job's state now, then every message as it comes, each once; ends after the terminal one.

    `after`: a message's id, to get every later message first; `"0"` for the whole history, in which the terminal
    message of a restarted job's earlier run ends nothing. Raises NotFound, NotAuthenticated (also when the token
    expires later), UsageError for a malformed `after`, and Unreachable when the server was never reached; once it
    was, a lost server is waited for.
    """
    pace = pace or Pace()
    place = Place(cursor(after))
    tries = 0
    connected_at: float | None = None
    while True:
        ending: Ending
        try:
            path = _path(job_id, place)
            async with subscribed(transport.connection, path, pace, most_waiting=MOST_WAITING) as socket:
                on_notice(Connected())
                connected_at = time.monotonic()
                # None: nothing followed a terminal message, not even the close that should.
                while (message := await receive(socket, pace.last_word_s if place.has_ended else None)) is not None:
                    if place.takes(message):
                        tries = 0
                        yield message
            return
        except ConnectionClosed as error:
            ending = after_close(error.rcvd, f"job {job_id}")
        except (OSError, InvalidHandshake) as error:
            ending = after_handshake(error)
        if connected_at is not None and time.monotonic() - connected_at > LASTED_S:
            # Silent is not broken: an epoch may take hours.
            tries, place.was_reached = 0, True
        connected_at = None
        tries += 1
        match ending:
            case Finished():
                return
            case Lost() if place.was_reached or tries < pace.first_tries:
                # The job is over and the server went away: nothing more can come but a restart.
                if place.has_ended and tries >= pace.first_tries:
                    return
                delay_s = jittered(tries, pace.backoff_s, pace.longest_backoff_s, ending.at_least_s)
                on_notice(Reconnecting(delay_s, ending.reason))
                await asyncio.sleep(delay_s)
            case Lost(reason=reason) | NoWebSocket(reason=reason):
                break
    on_notice(Polling(reason))
    async with aclosing(poll(transport, job_id, place, on_notice, pace)) as messages:
        async for message in messages:
            yield message


def _path(job_id: int, place: Place) -> str:
    path = f"/training-jobs/{job_id}/ws"
    return path if place.after is None else f"{path}?after={place.after}"
