"""Server-Sent Events: the socket's messages as an HTTP answer that stays open, for EventSource and for curl.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import math
import random
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import orjson
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api import connections, tasks
from api.closes import INTERNAL_ERROR, SERVICE_RESTART, Close, Refused
from api.connections import Ending
from api.peer import Peer
from api.problems import RETRY_AFTER_S, Problem
from api.relay import Relay
from api.telemetry import stays_open
from epochcast.events import EventId

logger = structlog.get_logger(__name__)

KIND = "text/event-stream"
_HEADERS = [
    (b"content-type", KIND.encode()),
    (b"cache-control", b"no-store"),
    # nginx would otherwise keep messages until a buffer is full.
    (b"x-accel-buffering", b"no"),
]
# A crowd that lost its gateway shall not come back as one: each is told another delay.
_RETRY_MS = (1_000, 3_000)
_COMMENT = b":\n\n"
# How long an ending stream may take to flush its last words.
_FLUSH_S = 4.0

Follow = Callable[[Peer], Coroutine[Any, Any, Close]]


class EventStream(Response):
    """Sends what `follow` sends to its peer until it ends, while it holds `place`."""

    def __init__(
        self, relay: Relay, expires_at: float, follow: Follow, place: AbstractAsyncContextManager[None]
    ) -> None:
        super().__init__()
        self._relay = relay
        self._expires_at = expires_at
        self._follow = follow
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stays_open(scope)
        try:
            async with self._place:
                await _Conversation(self._relay, self._expires_at, self._follow, scope, send).run()
        except Refused:
            await _too_many().response()(scope, receive, send)


class _Conversation:
    """One client of one stream."""

    def __init__(self, relay: Relay, expires_at: float, follow: Follow, scope: Scope, send: Send) -> None:
        self._relay = relay
        self._follow = follow
        self._send = send
        self._connection = connections.of(scope)
        # It can't speak, and that it is there is seen by what it takes.
        limits = replace(relay.limits, idle_timeout_s=math.inf)
        self._peer = Peer(self._message, expires_at, limits)
        self._has_begun = False

    async def run(self) -> None:
        halves = [asyncio.create_task(self._speak()), asyncio.create_task(self._keep_awake())]
        try:
            with self._connection.held(self._end), self._relay.watched(self._peer):
                close = await self._peer.ended()
        finally:
            await tasks.end(halves)
        if close is not None:
            await self._bid_farewell(close)

    def _end(self, ending: Ending) -> None:
        self._peer.end(SERVICE_RESTART if ending is Ending.RESTART else None)

    async def _speak(self) -> None:
        try:
            await self._peer.prod(self._begin)
            self._peer.end(await self._follow(self._peer))
        except Refused as refused:
            self._peer.end(refused.close)
        except Exception:
            logger.exception("an event stream's messages broke off")
            self._peer.end(INTERNAL_ERROR)

    async def _begin(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        self._has_begun = True
        await self._write(b"retry: %d\n\n" % random.randint(*_RETRY_MS))

    async def _keep_awake(self) -> None:
        """Shows proxies that the stream lives, and us that its client does: TCP gives up what nobody acknowledges."""
        while True:
            await asyncio.sleep(self._relay.limits.comment_s * random.uniform(0.85, 1.15))
            await self._peer.prod(lambda: self._write(_COMMENT))

    async def _bid_farewell(self, close: Close) -> None:
        """The socket's close frame, as an event of its own that `onmessage` doesn't see."""
        content = orjson.dumps({"code": close.code, "reason": close.reason})
        try:
            async with asyncio.timeout(_FLUSH_S):
                if not self._has_begun:
                    await self._begin()
                await self._write(b"event: close\ndata: " + content + b"\n\n")
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            await self._connection.abort()

    async def _message(self, identifier: EventId, text: str) -> None:
        # JSON needs no line breaks, but whoever may write to Redis could put some between its tokens.
        line = text.replace("\r", " ").replace("\n", " ")
        await self._write(f"id: {identifier}\ndata: {line}\n\n".encode())

    async def _write(self, body: bytes) -> None:
        if self._connection.is_closing:
            self._peer.end(None)
            return
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


def _too_many() -> Problem:
    detail = "all places of this job are taken; end another subscriber, or ask for the job by GET"
    return Problem(429, "too_many_connections", detail, headers={"Retry-After": str(RETRY_AFTER_S)})
