"""Follow a job over its WebSocket: every message once, through reconnects, until its terminal message.

What each close code asks of a client is section 2 of the contract; `_after_close` is that table.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.frames import Close

from epochcast.connection import Connection
from epochcast.errors import IncompatibleServer, Problem, Refused, refusal
from epochcast.events import decode
from epochcast.following import Connected, Message, OnNotice, Pace, Place, Polling, Reconnecting, cursor, unnoticed
from epochcast.polling import poll
from epochcast.transport import Transport, jittered, retry_after_s

FINISHED = 1000
REFUSED = 1008
# What a peer or proxy that breaks the protocol closes with; it will break it again.
BROKEN = frozenset({1002, 1003, 1007, 1009, 1010})
# A connection that lasted so long was a good one, even if nothing was said.
LASTED_S = 5.0
# Answers to the handshake that a later try may not get; any other says that here is no WebSocket.
PASSING = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class _Finished:
    """The server closed after the terminal message."""


@dataclass(frozen=True)
class _Lost:
    """The connection broke, or wasn't made; a later try may succeed."""

    reason: str
    at_least_s: float = 0.0


@dataclass(frozen=True)
class _NoWebSocket:
    """Something on the way (a proxy, mostly) doesn't carry WebSockets."""

    reason: str


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
        try:
            async with _subscribed(transport.connection, job_id, place, pace) as socket:
                on_notice(Connected())
                connected_at = time.monotonic()
                while (message := await _next_message(socket, place, pace)) is not None:
                    if place.takes(message):
                        tries = 0
                        yield message
            return
        except ConnectionClosed as error:
            ending = _after_close(error.rcvd, job_id)
        except (OSError, InvalidHandshake) as error:
            ending = _after_handshake(error)
        if connected_at is not None and time.monotonic() - connected_at > LASTED_S:
            # Silent is not broken: an epoch may take hours.
            tries, place.was_reached = 0, True
        connected_at = None
        tries += 1
        match ending:
            case _Finished():
                return
            case _Lost() if place.was_reached or tries < pace.first_tries:
                # The job is over and the server went away: nothing more can come but a restart.
                if place.has_ended and tries >= pace.first_tries:
                    return
                delay_s = jittered(tries, pace.backoff_s, pace.longest_backoff_s, ending.at_least_s)
                on_notice(Reconnecting(delay_s, ending.reason))
                await asyncio.sleep(delay_s)
            case _Lost(reason=reason) | _NoWebSocket(reason=reason):
                break
    on_notice(Polling(reason))
    async with aclosing(poll(transport, job_id, place, on_notice, pace)) as messages:
        async for message in messages:
            yield message


@asynccontextmanager
async def _subscribed(connection: Connection, job_id: int, place: Place, pace: Pace) -> AsyncIterator[ClientConnection]:
    """One socket, kept awake by text pings. The token travels in a header, where no log of addresses has it."""
    uri = f"{connection.websocket_api}/training-jobs/{job_id}/ws"
    async with connect(
        uri if place.after is None else f"{uri}?after={place.after}",
        additional_headers=connection.headers,
        compression=None,  # messages of 200 bytes: a deflate state would cost more than it saves
        proxy=None if connection.is_loopback else True,
        close_timeout=2,
        max_queue=1024,  # a reader that pauses for some epochs is not yet a slow consumer
    ) as socket:
        pings = asyncio.create_task(_ping(socket, pace.ping_every_s))
        try:
            yield socket
        finally:
            pings.cancel()


async def _ping(socket: ClientConnection, every_s: float) -> None:
    with suppress(ConnectionClosed):  # the reader sees it too, and knows what to do
        while True:
            await asyncio.sleep(every_s)
            await socket.send("ping")


async def _next_message(socket: ClientConnection, place: Place, pace: Pace) -> Message | None:
    """None when nothing followed a terminal message, not even the close that should."""
    try:
        async with asyncio.timeout(pace.last_word_s if place.has_ended else None):
            text = await socket.recv()
    except TimeoutError:
        return None
    try:
        return decode(text)
    except ValidationError as error:
        raise IncompatibleServer(
            f"the server sent a message that this version of epochcast can't read ({error.errors()[0]['msg']}); "
            "upgrade epochcast here or on the server"
        ) from error


def _after_close(close: Close | None, job_id: int) -> _Finished | _Lost | _NoWebSocket:
    """What a closed socket asks for; `close` is None when the connection broke without a word (1006)."""
    match close:
        case None:
            return _Lost("the connection broke")
        case Close(code=code) if code == FINISHED:
            return _Finished()
        case Close(code=code, reason=reason) if code == REFUSED:
            raise _refused(reason, job_id)
        case Close(code=code, reason=reason) if code in BROKEN:
            return _NoWebSocket(f"closed with {code} {reason}".rstrip())
        case Close(code=code, reason=reason):
            return _Lost(reason or f"closed with {code}")


def _after_handshake(error: OSError | InvalidHandshake) -> _Lost | _NoWebSocket:
    match error:
        case InvalidStatus(response=response) if response.status_code in PASSING:
            return _Lost(f"the server answered {response.status_code}", retry_after_s(response.headers))
        case InvalidStatus(response=response):
            return _NoWebSocket(f"the handshake was answered with {response.status_code}")
        case InvalidMessage() if isinstance(error.__cause__, EOFError):
            return _Lost("the connection broke")
        case InvalidHandshake():
            return _NoWebSocket(str(error))
        case _:
            return _Lost(str(error) or type(error).__name__)


def _refused(reason: str, job_id: int) -> Refused:
    """The error for a close with 1008, as REST would have given it."""
    if "job" in reason:
        return refusal(Problem(404, "Not Found", f"job {job_id} not found; `epochcast list` shows yours"))
    if "cursor" in reason:
        return refusal(Problem(422, "Unprocessable Content", f"job {job_id}: {reason}; give a message's id, or 0"))
    return refusal(Problem(401, "Unauthorized", f"{reason}; give a valid token with --token or EPOCHCAST_TOKEN"))
