"""What one gateway process holds while it runs, and how a request gets at it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Annotated, ParamSpec, TypeVar

import anyio
import anyio.to_thread
import redis.asyncio
from fastapi import Depends, Request

from api import snapshots, tasks
from api.auth import visible_to
from api.history import History
from api.limits import Limits
from api.owners import Owners
from api.polls import Polls
from api.relay import Relay
from api.telemetry import Telemetry
from api.threads import in_thread, in_time
from shared.artifacts import ArtifactStore, ArtifactsUnavailable
from shared.bundles import Bundles
from shared.database import Database
from shared.dispatcher import Dispatcher
from shared.event_log import EventReader
from shared.fleet import Fleet
from shared.queries import Queries
from shared.settings import Settings
from shared.store import Store
from shared.tokens import Identity

P = ParamSpec("P")
T = TypeVar("T")

SQL_CONNECTIONS = 40
SQL_PATIENCE_S = 1.0
UNPACKED_AT_ONCE = 4


@dataclass
class Gateway:
    """One per process, made by the lifespan of the application."""

    settings: Settings
    database: Database
    redis: redis.asyncio.Redis
    dispatcher: Dispatcher
    telemetry: Telemetry
    limits: Limits
    owners: Owners = field(default_factory=Owners)

    def __post_init__(self) -> None:
        self.store = Store(self.database)
        self.queries = Queries(self.database)
        self.bundles = Bundles(self.database)
        self.fleet = Fleet(self.database)
        self.reader = EventReader(self.redis)
        self.history = History(self.redis, self.store, self.queries)
        self.relay = Relay(self.settings, self.store, self.queries, self.redis, self.limits)
        self.polls = Polls(self.relay.channels, partial(snapshots.read, self), self.limits.polled_jobs)
        # As many threads as connections: a request waits for a thread here, or not at all.
        self._limiter = anyio.CapacityLimiter(SQL_CONNECTIONS)
        # Each may take over a GiB of the temporary folder while it is checked.
        self.unpacking = anyio.CapacityLimiter(UNPACKED_AT_ONCE)

    @cached_property
    def artifacts(self) -> ArtifactStore:
        """Opened when the first file is asked for: without its folder everything else still answers."""
        try:
            return ArtifactStore(self.settings.artifacts_url)
        except OSError as error:
            raise ArtifactsUnavailable(f"{self.settings.artifacts_url} can't be opened: {error}") from error

    async def record(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a call of the (synchronous) record in a thread. Raises DatabaseUnavailable, within 2 s."""
        return await in_time(in_thread(lambda: call(*args, **kwargs), self._limiter))

    async def in_thread(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs any other blocking call in a thread, however long it takes."""
        return await anyio.to_thread.run_sync(lambda: call(*args, **kwargs))

    async def check_owner(self, job_id: int, identity: Identity) -> str:
        """The owner. Raises JobNotFound for a job that is missing or somebody else's: the two look the same."""
        owner = self.owners.get(job_id)
        if owner is None:
            owner = await self.record(self.store.owner, job_id)
            self.owners.remember(job_id, owner)
        self.owners.check(job_id, owner, visible_to(identity))
        return owner

    def start(self) -> None:
        self.relay.start()
        self.dispatcher.start()
        self._sweep = asyncio.create_task(self._keep_sweeping(), name="polls")

    async def close(self) -> None:
        await tasks.end([self._sweep])
        await self.polls.stop()
        await self.relay.stop()
        await anyio.to_thread.run_sync(self.dispatcher.stop)
        await self.redis.aclose()
        self.database.close()

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(self.limits.polled_s)
            self.polls.drop_unused()


def of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


Here = Annotated[Gateway, Depends(of)]
