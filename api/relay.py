"""Turns event logs into messages for subscribers: one Redis subscription per process, fanned out to all of them."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import redis.asyncio
import structlog

from api import tasks
from api.closes import TOO_MANY_CONNECTIONS, Close, Refused
from api.delivery import Delivery
from api.feed import Feed
from api.fleet import FleetDelivery, FleetSubscriber
from api.history import History, in_thread
from api.limits import Limits
from api.peer import Peer
from api.slots import Slots
from api.standing import Standing, standings
from api.subscriber import Outbox, Subscriber
from epochcast.events import EventId
from epochcast.jobs import TrainingJob
from shared.database import DatabaseUnavailable
from shared.event_log import FEED_PATTERN, Entry, entry_of_feed, feed_channel, job_of_feed
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
        self._store = store
        self._queries = queries
        self._history = History(client, store, queries)
        self._slots = Slots(client, self.limits)
        self._feed = Feed(
            settings.events_redis_url,
            self.limits,
            on_message=self._dispatch,
            on_pattern_message=self._dispatch_to_fleet,
            on_subscribed=self._read_again,
        )
        self._channels: dict[int, set[Subscriber]] = {}
        self._empty_since: dict[int, float] = {}
        self._fleet: set[FleetSubscriber] = set()
        self._peers: set[Peer] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def subscribers(self) -> int:
        """Sockets that are connected now."""
        return len(self._peers)

    def start(self) -> None:
        self._feed.start()
        self._slots.start()
        loops = {"sweep": self._keep_sweeping(), "reconcile": self._keep_reconciling()}
        self._tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]

    async def stop(self) -> None:
        """The sockets were closed by the server (1012); what is left is ours."""
        await tasks.end(self._tasks)
        await self._feed.stop()
        await self._slots.stop()

    # --- one socket

    async def find(self, job_id: int, visible_to: str | None) -> TrainingJob:
        """The job as the record has it. Raises JobNotFound, DatabaseUnavailable."""
        return await in_thread(lambda: self._store.get(job_id, visible_to))

    async def follow(self, peer: Peer, record: TrainingJob, after: EventId | None) -> Close:
        """Sends a job's messages until they end. Raises Refused when all places are taken."""
        slot = await self._slots.acquire(record.job_id)
        if slot is None:
            raise Refused(TOO_MANY_CONNECTIONS)
        try:
            subscriber = Subscriber(record.job_id, Outbox(self.limits.queue_bytes, peer.end))
            async with self._attached(subscriber):
                return await Delivery(subscriber, self._history, peer.send).run(record, after)
        finally:
            await self._slots.release(slot)

    async def follow_fleet(self, peer: Peer, visible_to: str | None) -> Close:
        """Sends the messages of all jobs that `visible_to` may see (None: everybody's), until the peer goes."""
        subscriber = FleetSubscriber(visible_to, Outbox(self.limits.queue_bytes, peer.end))
        self._fleet.add(subscriber)
        try:
            await self._feed.subscribe(_PATTERN, is_pattern=True)
            return await FleetDelivery(subscriber, self._history, self._queries, peer.send).run()
        finally:
            self._fleet.discard(subscriber)
            if not self._fleet:
                await self._feed.unsubscribe(_PATTERN)

    @contextmanager
    def watched(self, peer: Peer) -> Iterator[None]:
        """Checks the peer's time-outs meanwhile."""
        self._peers.add(peer)
        try:
            yield
        finally:
            self._peers.discard(peer)

    @asynccontextmanager
    async def _attached(self, subscriber: Subscriber) -> AsyncIterator[None]:
        """In the fan-out, with the subscription confirmed by Redis (or Redis away: then it follows)."""
        job_id = subscriber.job_id
        self._channels.setdefault(job_id, set()).add(subscriber)
        self._empty_since.pop(job_id, None)
        try:
            await self._feed.subscribe(feed_channel(job_id).encode())
            yield
        finally:
            channel = self._channels[job_id]
            channel.discard(subscriber)
            if not channel:
                self._empty_since[job_id] = asyncio.get_running_loop().time()

    # --- fan-out

    def _dispatch(self, channel: bytes, data: bytes) -> None:
        subscribers = self._channels.get(job_of_feed(channel))
        if subscribers and (heard := _heard(channel, data)) is not None:
            _, entry, text = heard
            for subscriber in subscribers:
                subscriber.offer(entry, text)

    def _dispatch_to_fleet(self, channel: bytes, data: bytes) -> None:
        if (heard := _heard(channel, data)) is not None:
            job_id, entry, text = heard
            for subscriber in self._fleet:
                subscriber.offer(job_id, entry, text)

    def _read_again(self, channel: bytes) -> None:
        """A subscription was confirmed: what was published before, was not heard."""
        if channel == _PATTERN:
            for fleet_subscriber in self._fleet:
                fleet_subscriber.fall_behind()
            return
        for subscriber in self._channels.get(job_of_feed(channel), ()):
            subscriber.fall_behind()

    # --- loops

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(self.limits.sweep_s)
            try:
                for peer in list(self._peers):
                    peer.check()
                await self._drop_empty_channels()
            except Exception:
                # Without this loop no time-out would ever be seen again.
                logger.exception("relay: a sweep failed")

    async def _drop_empty_channels(self) -> None:
        before = asyncio.get_running_loop().time() - self.limits.linger_s
        for job_id in [job_id for job_id, since in self._empty_since.items() if since <= before]:
            # A subscriber may have come while another channel was dropped.
            if self._empty_since.pop(job_id, None) is not None:
                del self._channels[job_id]
                await self._feed.unsubscribe(feed_channel(job_id).encode())

    async def _keep_reconciling(self) -> None:
        """Messages can be lost without a break that anybody sees, and a terminal event may never be written."""
        step = 0
        while True:
            await asyncio.sleep(self.limits.reconcile_s / _STEPS)
            step = (step + 1) % _STEPS
            job_ids = [job_id for job_id, members in self._channels.items() if members and job_id % _STEPS == step]
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
        for job_id in job_ids:
            last = await self._history.last_id(job_id)
            for subscriber in self._channels.get(job_id, ()):
                if _is_due(subscriber, record.get(job_id), last):
                    subscriber.fall_behind()


def _is_due(subscriber: Subscriber, standing: Standing | None, last: EventId | None) -> bool:
    """Whether the log or the record has something for a subscriber that believes it is level."""
    if last is not None and last > subscriber.cursor:
        return True
    if standing is None:
        return False
    # A live log that SQL is ahead of is about to be announced; an empty one (or Redis away) has only SQL.
    return standing.is_terminal or (last is None and standing.last > subscriber.cursor)


def _heard(channel: bytes, data: bytes) -> tuple[int, Entry, str] | None:
    """The job, its event and the event's text; None for what no event log publishes: who has the password can."""
    try:
        entry = entry_of_feed(data)
        return job_of_feed(channel), entry, entry.payload.decode()
    except ValueError:
        logger.error("relay: an unreadable message was dropped", head=data[:40])
        return None
