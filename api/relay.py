"""Turns event logs into messages for subscribers: one Redis subscription per process, fanned out to all of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import redis.asyncio
import structlog

from api import fan_out, tasks
from api.burst import heard
from api.channels import Channels
from api.closes import TOO_MANY_CONNECTIONS, Close, Refused
from api.feed import Feed
from api.fleet import FleetDelivery, FleetSubscriber
from api.fleet_outbox import FleetOutbox
from api.following import Following, Sources
from api.history import History
from api.light import Lights
from api.limits import Limits
from api.peer import Peer
from api.slots import Slots
from api.standing import Standing, standings
from api.threads import Batches, in_thread
from epochcast.events import EventId
from epochcast.jobs import TrainingJob
from shared.database import DatabaseUnavailable
from shared.errors import JobNotFound
from shared.event_log import FEED_PATTERN, job_of_feed
from shared.queries import Queries
from shared.settings import Settings
from shared.store import Store

logger = structlog.get_logger(__name__)

_PATTERN = FEED_PATTERN.encode()
# A reconcile pass is spread over that many steps, so that SQL and Redis see no bursts.
_STEPS = 10


class Relay:
    """`start` and `stop` frame its life; in between `follow` and `follow_fleet` serve one socket each."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        queries: Queries,
        client: redis.asyncio.Redis,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits.of(settings)
        self._queries = queries
        self._records = Batches(queries.jobs_of)
        self._history = History(client, store, queries)
        self._slots = Slots(client, self.limits)
        self.channels = Channels(self.limits.linger_s)
        self._feed = Feed(
            settings.events_redis_url,
            self.limits,
            on_messages=self.channels.hear,
            on_pattern_message=self._dispatch_to_fleet,
            on_subscribed=self._read_again,
        )
        self.channels.open(self._feed)
        self._sources = Sources(self.channels, self._history, self._slots, self.limits)
        self.lights = Lights(self.limits)
        self._fleet: set[FleetSubscriber] = set()
        self._peers: set[Peer] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def subscribers(self) -> int:
        """Sockets that are connected now."""
        return len(self._peers) + len(self.lights)

    def start(self) -> None:
        logger.info("relay: started", sends_by="C" if fan_out.compiled() else "transports")
        self._feed.start()
        self._slots.start()
        self.lights.start()
        loops = {"sweep": self._keep_sweeping(), "reconcile": self._keep_reconciling()}
        self._tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]

    async def stop(self) -> None:
        """The sockets were closed by the server (1012); what is left is ours."""
        await tasks.end(self._tasks)
        await self.lights.stop()
        await self._feed.stop()
        await self._slots.stop()

    # --- one socket

    async def find(self, job_id: int, visible_to: str | None) -> TrainingJob:
        """The job as the record has it, but for its place in the queue. Raises JobNotFound, DatabaseUnavailable."""
        record = await self._records.get(job_id)
        if record is None or (visible_to is not None and record.owner != visible_to):
            raise JobNotFound(job_id)
        return record

    @asynccontextmanager
    async def place(self, job_id: int) -> AsyncIterator[None]:
        """One of the job's places, which whoever follows it takes. Raises Refused when all are taken."""
        slot = await self._slots.acquire(job_id)
        if slot is None:
            raise Refused(TOO_MANY_CONNECTIONS)
        try:
            yield
        finally:
            await self._slots.release(slot)

    async def follow(self, peer: Peer, record: TrainingJob, after: EventId | None) -> Close:
        """Sends a job's messages until they end. Raises Refused."""
        close = await self.following(record.job_id).begin(peer, record, after)
        assert close is not None, "nobody has put it to rest"
        return close

    def following(self, job_id: int) -> Following:
        """For one who may come to rest."""
        return Following(self._sources, job_id)

    async def follow_fleet(self, peer: Peer, visible_to: str | None) -> Close:
        """Sends the messages of all jobs that `visible_to` may see (None: everybody's), until the peer goes."""
        outbox = FleetOutbox(self.limits.conflate_bytes, self.limits.queue_bytes, peer.end)
        subscriber = FleetSubscriber(visible_to, outbox)
        self._fleet.add(subscriber)
        try:
            await self._feed.subscribe(_PATTERN, is_pattern=True)
            return await FleetDelivery(subscriber, self._history, self._queries, peer.send).run()
        finally:
            self._fleet.discard(subscriber)
            if not self._fleet:
                self._feed.unsubscribe(_PATTERN)

    def watch(self, peer: Peer) -> None:
        """Checks the peer's time-outs until `forget`."""
        self._peers.add(peer)

    def forget(self, peer: Peer) -> None:
        self._peers.discard(peer)

    @contextmanager
    def watched(self, peer: Peer) -> Iterator[None]:
        """Checks the peer's time-outs meanwhile."""
        self.watch(peer)
        try:
            yield
        finally:
            self.forget(peer)

    # --- fan-out

    def _dispatch_to_fleet(self, channel: bytes, data: bytes) -> None:
        job_id = job_of_feed(channel)
        if (message := heard(job_id, data)) is not None:
            for subscriber in self._fleet:
                subscriber.offer(job_id, *message)

    def _read_again(self, channel: bytes) -> None:
        """A subscription was confirmed: what was published before, was not heard."""
        if channel == _PATTERN:
            for fleet_subscriber in self._fleet:
                fleet_subscriber.fall_behind()
            return
        self.channels.fall_behind(channel)

    # --- loops

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(self.limits.sweep_s)
            try:
                self._sweep(asyncio.get_running_loop().time(), time.time())
            except Exception:
                # Without this loop no time-out would ever be seen again.
                logger.exception("relay: a sweep failed")

    def _sweep(self, now: float, clock: float) -> None:
        self.channels.note_writes()
        for peer in list(self._peers):
            peer.check(now, clock)
        self.channels.drop_empty()

    async def _keep_reconciling(self) -> None:
        """Messages can be lost without a break that anybody sees, and a terminal event may never be written."""
        step = 0
        while True:
            await asyncio.sleep(self.limits.reconcile_s / _STEPS)
            step = (step + 1) % _STEPS
            job_ids = [job_id for job_id in self.channels if job_id % _STEPS == step]
            try:
                await self._reconcile(job_ids)
            except Exception:
                # Without this loop a terminal state could stay unsaid (invariant I4).
                logger.exception("relay: a reconcile pass failed")
            if step == 0:
                for fleet_subscriber in self._fleet:
                    fleet_subscriber.fall_behind()

    async def _reconcile(self, job_ids: Sequence[int]) -> None:
        if not job_ids:
            return
        try:
            record = await in_thread(lambda: standings(self._queries.database, job_ids))
        except DatabaseUnavailable as error:
            logger.warning("relay: SQL is away", error=str(error))
            record = {}
        last = await self._history.last_ids([job_id for job_id in job_ids if self.channels.is_subscribed(job_id)])
        for job_id in job_ids:
            standing = record.get(job_id)
            level = self.channels.level(job_id)
            if level is not None and level.count and _is_due(level.last, standing, last.get(job_id)):
                level.dissolve()  # those at rest are subscribers then
            for subscriber in list(self.channels.subscribers(job_id)):
                if _is_due(subscriber.cursor, standing, last.get(job_id)):
                    subscriber.fall_behind()
            follower = self.channels.follower(job_id)
            if follower is not None and follower.is_due(standing):
                follower.fall_behind()


def _is_due(cursor: EventId, standing: Standing | None, last: EventId | None) -> bool:
    """Whether the log or the record has something for a subscriber that believes it is level."""
    if last is not None and last > cursor:
        return True
    if standing is None:
        return False
    # A live log that SQL is ahead of is about to be announced; an empty one (or Redis away) has only SQL.
    return standing.is_terminal or (last is None and standing.last > cursor)
