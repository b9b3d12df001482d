"""A gateway restarted under a crowd: everybody is told, comes back, and is neither dropped nor misses anything."""

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from epochcast.connection import Connection
from epochcast.following import Connected, Notice, Polling, Reconnecting
from epochcast.transport import Transport
from epochcast.watch import watch
from shared.database import Database
from shared.settings import Settings
from tests.api.gateway_process import GatewayProcess
from tests.api.training import Training
from tests.waiting import wait_until

# The whole crowd: PROOF_SUBSCRIBERS=1000 pytest tests/api/rest/test_restart.py
SUBSCRIBERS = int(os.environ.get("PROOF_SUBSCRIBERS", "60"))
# Below the limit of 10: on a machine this busy a connection may break and come back before its place is free.
PER_JOB = 8
# They come in waves, because one process plays them all; that they come back at once is the test.
WAVE = 50


@dataclass
class _Watcher:
    """One of our own clients."""

    job: Training
    told: list[str] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    resyncs: int = 0

    @property
    def is_connected(self) -> bool:
        return bool(self.told) and isinstance(self.notices[-1], Connected)

    async def follow(self, url: str) -> None:
        transport = Transport(Connection(url, None))
        try:
            async for message in watch(transport, self.job.job_id, after="0", on_notice=self.notices.append):
                self.told.append(message.id)
                self.resyncs += getattr(message, "resync", None) is True
        finally:
            await transport.close()


def test_a_crowd_comes_back_from_a_restart_without_a_loss(
    open_settings: Settings, database: Database, redis_url: str
) -> None:
    jobs = [Training(database, redis_url).start(lease_s=3600) for _ in range(max(1, SUBSCRIBERS // PER_JOB))]
    watchers = [_Watcher(jobs[number % len(jobs)]) for number in range(SUBSCRIBERS)]
    given_up = threading.Event()
    with ThreadPoolExecutor(1) as pool, GatewayProcess(open_settings) as gateway:
        following = pool.submit(lambda: asyncio.run(_follow_all(watchers, gateway.url, given_up)))
        try:
            wait_until(lambda: all(watcher.is_connected for watcher in watchers), "the crowd", timeout_s=120)
            for job in jobs:
                job.report(3)
            gateway.end(signal.SIGTERM)
            for job in jobs:
                job.report(3)
            gateway.start()
            for job in jobs:
                job.report(3)
            wait_until(lambda: all(watcher.is_connected for watcher in watchers), "the crowd's return", timeout_s=120)
            for job in jobs:
                job.report(3)
                job.finish()
            following.result(120)
        finally:
            given_up.set()
    for watcher in watchers:
        assert watcher.told == watcher.job.ids
        assert watcher.resyncs == 0
        assert not [notice for notice in watcher.notices if isinstance(notice, Polling)]
    reasons = [
        {notice.reason for notice in watcher.notices if isinstance(notice, Reconnecting)} for watcher in watchers
    ]
    assert all("service restart" in each for each in reasons), "somebody wasn't told"
    # A try may come before the gateway listens again, or be one too many for the machine of the test; but what a crowd
    # must not bring about is any of these words of the gateway itself.
    assert not set().union(*reasons) & {"slow consumer", "too many connections", "temporarily unavailable"}
    for job in jobs:
        job.close()


async def _follow_all(watchers: list[_Watcher], url: str, given_up: threading.Event) -> None:
    following: set[asyncio.Task[None]] = set()
    for start in range(0, len(watchers), WAVE):
        wave = watchers[start : start + WAVE]
        following |= {asyncio.create_task(watcher.follow(url)) for watcher in wave}
        await asyncio.to_thread(wait_until, partial(_are_connected, wave, given_up), "a wave", timeout_s=120)
    while following and not given_up.is_set():
        done, following = await asyncio.wait(following, timeout=0.5)
        for task in done:
            task.result()
    for task in following:
        task.cancel()


def _are_connected(wave: list[_Watcher], given_up: threading.Event) -> bool:
    return given_up.is_set() or all(watcher.is_connected for watcher in wave)
