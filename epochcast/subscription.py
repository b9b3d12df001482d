"""One WebSocket of the gateway: opened with the token in a header, kept awake, and what its end asks of a client.

What each close code asks is section 2 of the contract; `after_close` is that table.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.frames import Close

from epochcast.connection import Connection
from epochcast.errors import IncompatibleServer, Problem, Refused, refusal
from epochcast.events import decode
from epochcast.following import Message, Pace
from epochcast.transport import retry_after_s

FINISHED = 1000
REFUSED = 1008
# What a peer or proxy that breaks the protocol closes with; it will break it again.
BROKEN = frozenset({1002, 1003, 1007, 1009, 1010})
# A connection that lasted so long was a good one, even if nothing was said.
LASTED_S = 5.0
# Answers to the handshake that a later try may not get; any other says that here is no WebSocket.
PASSING = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Finished:
    """The server closed after the terminal message."""


@dataclass(frozen=True)
class Lost:
    """The connection broke, or wasn't made; a later try may succeed."""

    reason: str
    at_least_s: float = 0.0


@dataclass(frozen=True)
class NoWebSocket:
    """Something on the way (a proxy, mostly) doesn't carry WebSockets."""

    reason: str


Ending = Finished | Lost | NoWebSocket


@asynccontextmanager
async def subscribed(
    connection: Connection, path: str, pace: Pace, *, most_waiting: int
) -> AsyncIterator[ClientConnection]:
    """One socket, kept awake by text pings. The token travels in a header, where no log of addresses has it.

    `most_waiting`: messages that are read ahead of the caller; beyond them the server notices that it is slow.
    """
    async with connect(
        f"{connection.websocket_api}{path}",
        additional_headers=connection.headers,
        compression=None,  # messages of 200 bytes: a deflate state would cost more than it saves
        proxy=None if connection.is_loopback else True,
        close_timeout=2,
        max_queue=most_waiting,
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


async def receive(socket: ClientConnection, timeout_s: float | None = None) -> Message | None:
    """The next message; None when none came in time. Raises ConnectionClosed and IncompatibleServer."""
    try:
        async with asyncio.timeout(timeout_s):
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


def after_close(close: Close | None, what: str) -> Ending:
    """What a closed socket asks for; None: the connection broke without a word (1006). `what` was followed.

    Raises Refused for a close with 1008.
    """
    match close:
        case None:
            return Lost("the connection broke")
        case Close(code=code) if code == FINISHED:
            return Finished()
        case Close(code=code, reason=reason) if code == REFUSED:
            raise _refused(reason, what)
        case Close(code=code, reason=reason) if code in BROKEN:
            return NoWebSocket(f"closed with {code} {reason}".rstrip())
        case Close(code=code, reason=reason):
            return Lost(reason or f"closed with {code}")


def after_handshake(error: OSError | InvalidHandshake) -> Lost | NoWebSocket:
    """What a handshake that failed asks for."""
    match error:
        case InvalidStatus(response=response) if response.status_code in PASSING:
            return Lost(f"the server answered {response.status_code}", retry_after_s(response.headers))
        case InvalidStatus(response=response):
            return NoWebSocket(f"the handshake was answered with {response.status_code}")
        case InvalidMessage() if isinstance(error.__cause__, EOFError):
            return Lost("the connection broke")
        case InvalidHandshake():
            return NoWebSocket(str(error))
        case _:
            return Lost(str(error) or type(error).__name__)


def _refused(reason: str, what: str) -> Refused:
    """The error for a close with 1008, as REST would have given it."""
    if "job" in reason:
        return refusal(Problem(404, "Not Found", f"{what} not found; `epochcast list` shows yours"))
    if "cursor" in reason:
        return refusal(Problem(422, "Unprocessable Content", f"{what}: {reason}; give a message's id, or 0"))
    return refusal(Problem(401, "Unauthorized", f"{reason}; give a valid token with --token or EPOCHCAST_TOKEN"))
