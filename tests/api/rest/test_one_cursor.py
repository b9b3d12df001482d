"""One cursor: clients that change between WebSocket, event stream and long poll get the log, once (I3)."""

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx2
from redis.exceptions import RedisError
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from epochcast.jobs import Status
from shared.database import Database
from shared.embedded import RedisServer
from shared.event_log import Answer, Entry
from shared.settings import Settings
from tests.api.gateway_process import GatewayProcess
from tests.api.reading import Message
from tests.api.training import Training

# The whole proof takes minutes: PROOF_DISCONNECTS=1000 PROOF_JOBS=20 pytest tests/api/rest/test_one_cursor.py
DISCONNECTS = int(os.environ.get("PROOF_DISCONNECTS", "120"))
JOBS = int(os.environ.get("PROOF_JOBS", "4"))
BROKEN = (OSError, httpx2.HTTPError, ConnectionClosed, InvalidHandshake, TimeoutError)


def test_clients_that_change_transport_while_everything_breaks_get_the_log_once(
    open_settings: Settings, database: Database, redis_server: RedisServer
) -> None:
    with GatewayProcess(open_settings) as gateway:
        jobs = [Training(database, redis_server.url, epochs=1000) for _ in range(JOBS)]
        for job in jobs:
            job.start(lease_s=3600)
        world = _World(jobs)
        with ThreadPoolExecutor(2) as pool:
            training = pool.submit(world.train)
            following = pool.submit(lambda: asyncio.run(_follow_all(gateway, world)))
            following.add_done_callback(lambda _: world.is_enough.set())
            try:
                # In this thread: what it starts would die with another.
                world.break_things(gateway, redis_server)
                following.result()
            finally:
                world.is_enough.set()
            training.result()
    for client in world.clients:
        assert client.told == world.written(client.job), f"after {client.ways}"
    ways = {way for client in world.clients for way in client.ways}
    assert ways == {"socket", "stream", "events"}
    print(f"{world.disconnects} disconnects, {world.gateway_ends} of the gateway, {world.redis_ends} of Redis")
    for job in jobs:
        job.close()


@dataclass
class _Client:
    """One that keeps its cursor over whatever connection it has."""

    job: Training
    told: list[str] = field(default_factory=list)
    ways: list[str] = field(default_factory=list)
    has_ended: bool = False

    @property
    def cursor(self) -> str:
        return self.told[-1] if self.told else "0"

    def take(self, message: Message) -> None:
        assert not message.get("resync"), f"a hole after {self.cursor}, by {self.ways[-1]}: {message}"
        self.told.append(message["id"])
        self.has_ended = Status(message["status"]).is_terminal


async def _follow_all(gateway: GatewayProcess, world: "_World") -> None:
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False, timeout=15) as http:
        async with asyncio.timeout(170 + DISCONNECTS / 2):
            await asyncio.gather(*(_follow(client, gateway, http, world) for client in world.clients))


async def _follow(client: _Client, gateway: GatewayProcess, http: httpx2.AsyncClient, world: "_World") -> None:
    ways = {"socket": _by_socket, "stream": _by_stream, "events": _by_events}
    while not client.has_ended:
        way = random.choice(list(ways))
        client.ways.append(way)
        told = len(client.told)
        left = random.choice([1, 1, 3, 20])
        try:
            async for message in ways[way](client, gateway, http):
                client.take(message)
                if (left := left - 1) <= 0 and not world.is_enough.is_set():
                    break
        except BROKEN:
            await asyncio.sleep(0.1)
        if len(client.told) > told:
            world.count_disconnect()


async def _by_socket(client: _Client, gateway: GatewayProcess, _http: httpx2.AsyncClient) -> AsyncIterator[Message]:
    address = gateway.url.replace("http", "ws", 1)
    async with connect(
        f"{address}/api/v1/training-jobs/{client.job.job_id}/ws?after={client.cursor}", close_timeout=1
    ) as opened:
        async for text in opened:
            yield json.loads(text)


async def _by_stream(client: _Client, _gateway: GatewayProcess, http: httpx2.AsyncClient) -> AsyncIterator[Message]:
    path = f"/api/v1/training-jobs/{client.job.job_id}/events"
    headers = {"Accept": "text/event-stream", "Last-Event-ID": client.cursor}
    async with http.stream("GET", path, headers=headers) as response:
        assert response.status_code in (200, 503), response.status_code
        is_close = False
        async for line in response.aiter_lines():
            if line.startswith("event: close"):
                is_close = True
            elif line.startswith("data: ") and not is_close:
                yield json.loads(line.removeprefix("data: "))


async def _by_events(client: _Client, _gateway: GatewayProcess, http: httpx2.AsyncClient) -> AsyncIterator[Message]:
    path = f"/api/v1/training-jobs/{client.job.job_id}/events"
    response = await http.get(path, params={"after": client.cursor, "wait": 2, "limit": 50})
    assert response.status_code in (200, 503), response.text
    if response.status_code == 200:
        page = response.json()
        assert not page["resync"]
        for message in page["items"]:
            yield message


class _World:
    """Jobs that train, and what happens to them, until there were enough disconnects."""

    def __init__(self, jobs: list[Training]) -> None:
        self._jobs = jobs
        self.clients = [_Client(job) for job in jobs]
        self.is_enough = threading.Event()
        self.disconnects = self.gateway_ends = self.redis_ends = 0

    def count_disconnect(self) -> None:
        """Of a connection on which something came; those that were refused count for nothing."""
        self.disconnects += 1
        if self.disconnects >= DISCONNECTS:
            self.is_enough.set()

    def written(self, job: Training) -> list[str]:
        assert job.claimed is not None
        before = [entry.id for entry in job.claimed.unannounced]
        return [str(identifier) for identifier in [*before, *(entry.id for entry in job.shipped), job.last]]

    def train(self) -> None:
        # Fast at first and slower later: what is published must outlast the disconnects.
        while not self.is_enough.is_set():
            for job in self._jobs:
                if job.epoch < 990:
                    for entry in [*job.report(1, ship=False), job.say("hello", ship=False)]:
                        _ship(job, entry)
                if job.epoch % 20 == 0:
                    job.archive()
            self.is_enough.wait(0.05 + self.disconnects / DISCONNECTS / 10)
        for job in self._jobs:
            _ship(job, job.finish(ship=False))

    def break_things(self, gateway: GatewayProcess, redis_server: RedisServer) -> None:
        """One after the other, spread over the disconnects: twice the gateway, once Redis."""
        for number, share in enumerate(step / 10 for step in range(1, 10)):
            while self.disconnects < share * DISCONNECTS:
                if self.is_enough.wait(0.1):
                    return
            if number % 3 == 2:
                redis_server.kill()
                self.is_enough.wait(0.5)
                redis_server.start()
                self.redis_ends += 1
            else:
                gateway.end(signal.SIGTERM if number % 3 == 0 else signal.SIGKILL)
                gateway.start()
                self.gateway_ends += 1


def _ship(job: Training, entry: Entry) -> None:
    """As a worker does: until Redis has it, and all of its generation before it."""
    while True:
        try:
            answer = job.log.append(job.job_id, entry, snapshot=b"{}", current=entry.payload).answer
            if answer is not Answer.BEHIND:
                return
            assert job.claimed is not None
            for one in [*job.claimed.unannounced[-1:], *job.shipped]:
                if one.id < entry.id:
                    job.log.append(job.job_id, one, snapshot=b"{}", current=one.payload, announce=False)
        except (RedisError, OSError):
            time.sleep(0.05)
