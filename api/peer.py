"""The connection of one client: sends that can't block for ever, and the reasons for which it is closed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from api.closes import IDLE_TIMEOUT, SLOW_CONSUMER, TOKEN_EXPIRED, Close
from api.limits import Limits
from epochcast.events import EventId

Send = Callable[[EventId, str], Awaitable[None]]
"""Sends one message: its id, for transports that carry it beside the text, and the text."""


class Line(Protocol):
    """A connection that takes ready bytes without waiting, which costs a tenth of a queue and a task (2026-11-24)."""

    drains: bool
    """The peer reads: nothing waits to be sent, and nothing has ended the connection."""
    has_written: bool
    """Since somebody said False."""

    stalled: Callable[[], None] | None
    """Called when it no longer drains."""

    transport: asyncio.Transport
    """Where ready frames are written, only while it drains: they may pass by whatever it holds back."""


class Peer:
    """Knows when it was last heard of; whoever decides to close it calls `end`, and the first one wins.

    `expires_at`: Unix seconds at which its token ends. Needs a running event loop.
    """

    def __init__(
        self,
        send: Send,
        expires_at: float,
        limits: Limits,
        line: Line | None = None,
        on_calm: Callable[[float], None] | None = None,
    ) -> None:
        """`on_calm`: called by every `check` that ends nothing, with the seconds until one would."""
        self.line = line
        self.expires_at = expires_at
        self._send = send
        self._limits = limits
        self._on_calm = on_calm
        self._loop = asyncio.get_running_loop()
        self.active_at = self._loop.time()
        """When something was last sent or heard, by the loop's clock."""
        self._sending_since: float | None = None
        self._over: asyncio.Future[Close | None] = self._loop.create_future()

    async def send(self, identifier: EventId, text: str) -> None:
        """Blocks while the peer doesn't drain; `check` ends it when that takes too long."""
        self._sending_since = self._loop.time()
        await self._send(identifier, text)
        self._sending_since = None
        self.active_at = self._loop.time()

    async def prod(self, write: Callable[[], Awaitable[None]]) -> None:
        """Writes what is no message; not while a message waits to be written, which shows as much."""
        if self._sending_since is None:
            self._sending_since = self._loop.time()
            await write()
            self._sending_since = None

    def heard(self) -> None:
        """It sent a message. Pongs are none."""
        self.active_at = self._loop.time()

    def end(self, close: Close | None) -> None:
        """None: it is gone already, there is nobody to tell."""
        if not self._over.done():
            self._over.set_result(close)

    def when_ended(self, call: Callable[[Close | None], None]) -> None:
        """Calls it in a moment, also when that was before."""
        self._over.add_done_callback(lambda over: call(over.result()))

    async def ended(self) -> Close | None:
        return await asyncio.shield(self._over)

    def check(self, now: float, clock: float) -> None:
        """Ends it when its time is over; called by the relay every half second or so.

        `now`: the loop's time. `clock`: Unix seconds.
        """
        if self.line is not None and self.line.has_written:
            self.line.has_written = False
            self.active_at = now
        if clock >= self.expires_at:
            self.end(TOKEN_EXPIRED)
        elif self._sending_since is not None:
            if now - self._sending_since > self._limits.send_timeout_s:
                self.end(SLOW_CONSUMER)
        elif now - self.active_at >= self._limits.idle_timeout_s:
            self.end(IDLE_TIMEOUT)
        elif self._on_calm is not None and not self._over.done():
            self._on_calm(min(self.expires_at - clock, self.active_at + self._limits.idle_timeout_s - now))
