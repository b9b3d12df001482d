"""Follow a job over its WebSocket: every message once, through reconnects, until its terminal message.

What each close code asks of a client is section 2 of the contract; `FINISHED`, `REFUSED` and `BROKEN` are that table.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import assert_never

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from epochcast.connection import Connection
from epochcast.errors import IncompatibleServer, Invalid, NotAuthenticated, NotFound, Problem, Refused
from epochcast.events import EventId, decode
from epochcast.following import Connected, Message, OnNotice, Pace, Place, Polling, Reconnecting, unnoticed
from epochcast.polling import poll
from epochcast.transport import Transport, jittered, retry_after_s

FINISHED = 1000
REFUSED = 1008
ABNORMAL = 1006
# A peer or proxy that breaks the protocol will break it again.
BROKEN = frozenset({1002, 1003, 1007, 1009, 1010})
TRANSIENT_STATUS = frozenset({429, 500, 502, 503, 504})


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
    expires later) and Invalid (of `after`), and Unreachable when the server was never reached; once it was, a lost
    server is waited for.
    """
    pace = pace or Pace()
    place = Place(_cursor(after))
    tries = 0
    while True:
        try:
            async with _subscribed(transport.connection, job_id, place, pace) as socket:
                on_notice(Connected())
                while True:
                    message = await _next_message(socket, place, pace)
                    if place.takes(message):
                        tries = 0
                        yield message
        except (OSError, InvalidHandshake, ConnectionClosed) as error:  # TimeoutError is an OSError
            ending = _ending(error)
        match ending:
            case _Closed(code=code, reason=reason) if code == REFUSED:
                raise refused(reason, job_id)
            case _Closed(code=code) if code == FINISHED:
                return
            case _Closed(code=code, reason=reason) if code in BROKEN:
                break
        ...
