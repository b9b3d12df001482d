"""A gateway restarted under a crowd: everybody is told, comes back, and is neither dropped nor misses anything."""

import asyncio
import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

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
PER_JOB = 10


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
    with GatewayProcess(open_settings) as gateway, ThreadPoolExecutor(1) as pool:
        following = pool.submit(lambda: asyncio.run(_follow_all(watchers, gateway.url)))
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
    for watcher in watchers:
        assert watcher.told == watcher.job.ids
        assert watcher.resyncs == 0
        assert not [notice for notice in watcher.notices if isinstance(notice, Polling)]
    reasons = Counter(_first_reason(watcher) for watcher in watchers)
    assert reasons == {"service restart": SUBSCRIBERS}
    later = Counter(notice.reason for watcher in watchers for notice in _reconnects(watcher)[1:])
    # Until it listens again; what a crowd must not bring about is any word of the gateway itself.
    assert not {"slow consumer", "too many connections", "temporarily unavailable", "internal error"} & set(later)
    for job in jobs:
        job.close()


async def _follow_all(watchers: list[_Watcher], url: str) -> None:
    await asyncio.gather(*(watcher.follow(url) for watcher in watchers))


def _reconnects(watcher: _Watcher) -> list[Reconnecting]:
    return [notice for notice in watcher.notices if isinstance(notice, Reconnecting)]


def _first_reason(watcher: _Watcher) -> str:
    return _reconnects(watcher)[0].reason
