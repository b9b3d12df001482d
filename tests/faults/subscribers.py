"""Subscribers over WebSocket, SSE and polling that keep every message as it came, over any number of connections.

Not our own client: that one drops repeats, and a repeat is what the checker has to see.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from epochcast.events import BEFORE_ALL, EventId

AGAIN_S = 0.2
_BROKEN = (OSError, InvalidHandshake, httpx2.HTTPError)


@dataclass(frozen=True, slots=True)
class Told:
    """One message, as it came. `at`: when, CLOCK_MONOTONIC seconds."""

    content: dict[str, Any]
    at: float

    @property
    def id(self) -> EventId:
        return EventId.parse(self.content["id"])

    @property
    def resync(self) -> bool:
        return bool(self.content.get("resync", False))

    @property
    def is_terminal(self) -> bool:
        kind, status = self.content["type"], self.content["status"]
        return kind in ("complete", "error") or (kind == "progress" and status == "stopped")


@dataclass(slots=True)
class Joined:
    """What one subscriber got, connection after connection, each resumed with its cursor."""

    job_id: int
    kind: str
    number: int
    told: list[Told] = field(default_factory=list)
    connections: int = 0
    has_ended: bool = False
    trouble: str = ""
    """What broke the last connection."""

    def __str__(self) -> str:
        heard = f"{len(self.told)} messages up to {self.cursor}, {self.connections} connections"
        return f"{self.kind} subscriber {self.number} of job {self.job_id} ({heard}; last trouble: {self.trouble})"

    @property
    def cursor(self) -> str:
        """After what it has: the beginning, so that the whole story is asked for."""
        return str(self.told[-1].id if self.told else BEFORE_ALL)

    def take(self, content: dict[str, Any]) -> None:
        self.told.append(Told(content, time.monotonic()))


class Audience:
    """Follows jobs in a thread of its own until each has said its end, or `leave`."""

    KINDS = ("ws", "sse", "poll")

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api/v1/training-jobs"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="audience")
        self._thread.start()
        self._tasks: list[asyncio.Future[None]] = []
        self.joined: list[Joined] = []

    def follow(self, job_id: int, *, each: int = 1, kinds: tuple[str, ...] = KINDS) -> list[Joined]:
        """`each`: how many of each kind."""
        ways: dict[str, Callable[[Joined], Awaitable[None]]] = {"ws": self._ws, "sse": self._sse, "poll": self._poll}
        before = sum(joined.job_id == job_id for joined in self.joined)
        new = [Joined(job_id, kind, before + number) for kind in kinds for number in range(each)]
        self.joined += new
        for joined in new:
            task = asyncio.run_coroutine_threadsafe(self._again_and_again(joined, ways[joined.kind]), self._loop)
            self._tasks.append(asyncio.wrap_future(task, loop=self._loop))
        return new

    def waiting(self) -> list[Joined]:
        """Those who have not had the end, or were not told that it was the end."""
        return [joined for joined in self.joined if not joined.has_ended]

    def close(self) -> None:
        async def leave() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(leave(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    async def _again_and_again(self, joined: Joined, way: Callable[[Joined], Awaitable[None]]) -> None:
        while not joined.has_ended:
            joined.connections += 1
            try:
                await way(joined)
            except (*_BROKEN, ConnectionClosed, TimeoutError) as error:
                joined.trouble = f"{type(error).__name__}: {error}"
                await asyncio.sleep(AGAIN_S)

    async def _ws(self, joined: Joined) -> None:
        url = f"{self._url.replace('http', 'ws', 1)}/{joined.job_id}/ws?after={joined.cursor}"
        async with connect(url, compression=None, proxy=None, open_timeout=10, close_timeout=1) as socket:
            try:
                while True:
                    joined.take(orjson.loads(await socket.recv()))
            except ConnectionClosed as closed:
                self._judge_close(joined, closed.rcvd.code if closed.rcvd else 1006)

    @staticmethod
    def _judge_close(joined: Joined, code: int) -> None:
        assert code != 1008, f"job {joined.job_id} was refused to a subscriber"
        # A job that was restarted meanwhile says 1000 behind the end that it has now.
        joined.has_ended = code == 1000 and bool(joined.told) and joined.told[-1].is_terminal

    async def _sse(self, joined: Joined) -> None:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": joined.cursor}
        url, patience = f"{self._url}/{joined.job_id}/events", httpx2.Timeout(10, read=60)
        async with (
            httpx2.AsyncClient(trust_env=False, timeout=patience) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            if response.status_code == 204:
                joined.has_ended = True
                return
            if response.status_code != 200:
                raise httpx2.HTTPError(f"answered {response.status_code}")
            event = ""
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    event = value
                elif name == "data" and event == "close":
                    self._judge_close(joined, orjson.loads(value)["code"])
                elif name == "data":
                    joined.take(orjson.loads(value))
                elif not line:
                    event = ""

    async def _poll(self, joined: Joined) -> None:
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
            while not joined.has_ended:
                query: dict[str, str | int] = {"after": joined.cursor, "wait": 5}
                answer = await client.get(f"{self._url}/{joined.job_id}/events", params=query)
                if answer.status_code != 200:
                    raise httpx2.HTTPError(f"answered {answer.status_code}")
                page = answer.json()
                for number, content in enumerate(page["items"]):
                    # Where history is gone, the answer says so for what comes first behind the hole.
                    joined.take(content | ({"resync": True} if page["resync"] and number == 0 else {}))
                if not page["items"] and joined.told and joined.told[-1].is_terminal:
                    joined.has_ended = True
