"""Sockets at rest: while only ready frames go out and only pongs come in, in a tenth of an awake one's memory."""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from typing import Any

import structlog

from api import tasks
from api.following import Rest
from api.keepalive import KeptAlive, Ping, is_answer
from api.limits import Limits

logger = structlog.get_logger(__name__)

# A socket is pinged in one of so many turns, which come round once in the time that one may be without a ping.
_TURNS = 20


class LightSocket(asyncio.Protocol, ABC):
    """The connection of a subscriber that is level with its job: the level's member, and its own line.

    Whatever is not told here wakes it: a whole socket takes its place, and what has happened happens to that one.
    """

    __slots__ = ("active_at", "expires_at", "has_written", "is_answered", "ping", "rest", "transport", "turn")

    def __init__(
        self, transport: asyncio.Transport, rest: Rest, ping: Ping, *, expires_at: float, active_at: float
    ) -> None:
        """`ping`: the last one, which was answered. `expires_at`: Unix seconds. `active_at`: when something was last
        written or heard, by the loop's clock."""
        self.transport = transport
        self.rest = rest
        self.ping = ping
        self.expires_at = expires_at
        self.active_at = active_at
        self.is_answered = True
        self.has_written = False
        self.turn = 0

    @abstractmethod
    def wake(self) -> KeptAlive:
        """The whole socket in its place, which it has left."""

    def leave(self) -> None:
        self.wake()

    def remaining_s(self, limits: Limits, now: float, clock: float) -> float:
        """Until its time is over, were nothing written or heard. `now`: the loop's time. `clock`: Unix seconds."""
        if self.has_written:
            self.has_written = False
            self.active_at = now
        return min(self.expires_at - clock, self.active_at + limits.idle_timeout_s - now)

    def send(self, ping: Ping, frame: bytes) -> None:
        self.ping, self.is_answered = ping, False
        self.transport.write(frame)

    # --- what happens to the connection

    def data_received(self, data: bytes) -> None:
        if not self.is_answered and is_answer(data, self.ping.payload):
            self.is_answered = True
        else:
            self.wake().data_received(data)

    def eof_received(self) -> None:
        self.wake().eof_received()

    def pause_writing(self) -> None:
        self.wake().pause_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.wake().connection_lost(exc)


class Lights:
    """All light sockets of a relay: pings them, and wakes those that don't answer or whose time is nearly over.

    None of them has a timer or a task, and each is looked at once in `ping_s`.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._step_s = limits.ping_s / _TURNS
        self._turns: list[set[LightSocket]] = [set() for _ in range(_TURNS)]
        self._turn = 0
        self._connections: set[Any] = set()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return sum(map(len, self._turns))

    @property
    def least_s(self) -> float:
        """Who has less time left is awake, and ends in time."""
        return self._limits.ping_s + 1.0

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_turning(), name="lights")

    async def stop(self) -> None:
        if self._task is not None:
            await tasks.end([self._task])

    def add(self, light: LightSocket, connections: set[Any]) -> None:
        """Its next ping comes before it is due, at random: sockets that opened together are not to stay together.

        `connections`: the server's, of which all light sockets are one together: it asks nothing of them but
        `shutdown`, and as thousands they would cost a hundred bytes each there (2026-11-30).
        """
        self._connections = connections
        connections.add(self)
        due_s = light.ping.sent_at + self._limits.ping_s - asyncio.get_running_loop().time()
        light.turn = (self._turn + random.randint(1, max(1, min(_TURNS, int(due_s / self._step_s))))) % _TURNS
        self._turns[light.turn].add(light)

    def remove(self, light: LightSocket) -> None:
        self._turns[light.turn].discard(light)

    def shutdown(self) -> None:
        """The server stops, and hears of each of them from now on."""
        self._connections.discard(self)
        for light in [light for turn in self._turns for light in turn]:
            try:
                light.wake().shutdown()
            except Exception:
                logger.exception("lights: one was not told of the server's end")

    async def _keep_turning(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            # By the clock: the time that a turn takes must not add up.
            due = max(due + self._step_s, loop.time() - self._step_s)
            await asyncio.sleep(due - loop.time())
            self._turn = (self._turn + 1) % _TURNS
            try:
                self._visit(self._turns[self._turn], loop.time(), time.time())
            except Exception:
                # Without this loop nobody would be pinged again.
                logger.exception("lights: a turn failed")

    def _visit(self, lights: set[LightSocket], now: float, clock: float) -> None:
        ping = Ping(now)
        frame = ping.frame
        for light in list(lights):
            if light.is_answered and light.remaining_s(self._limits, now, clock) > self.least_s:
                light.send(ping, frame)
            else:
                light.wake()
