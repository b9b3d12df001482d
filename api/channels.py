"""Who listens to which job's live feed: one subscription a job, kept for a while after the last listener."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog

from api.burst import Burst, heard
from api.feed import Feed
from api.level import Level, Owed, pay
from api.standing import Standing
from api.subscriber import Subscriber
from epochcast.events import EventId
from shared.event_log import feed_channel

logger = structlog.get_logger(__name__)


class Follower(Protocol):
    """Somebody who reads the job's state again when there is news, rather than every event (pollers)."""

    def hear(self, identifier: EventId) -> None:
        """An event was published."""

    def fall_behind(self) -> None:
        """Some may have been missed."""

    def is_due(self, standing: Standing | None) -> bool:
        """Whether the record has something that the follower doesn't know."""


@dataclass(slots=True)
class Channel:
    """One job's listeners."""

    job_id: int
    subscribers: set[Subscriber] = field(default_factory=set)
    follower: Follower | None = None
    empty_since: float | None = None
    level: Level = field(default_factory=Level)

    @property
    def is_empty(self) -> bool:
        return not self.subscribers and not self.level.count and self.follower is None

    def hear(self, events: Sequence[bytes], owed: list[Owed]) -> None:
        """Those of one read. Who is not level is told at once; what the others get is put to what is `owed`."""
        level = self.level
        if len(events) == 1 and level.count and not self.subscribers and self.follower is None:
            # What most reads bring to most jobs: one event for sockets at rest. The fewest steps are 2 % of a quiet
            # gateway's p50 (2026-11-30).
            if (frame := level.take(events[0])) is not None:
                level.owe(frame, owed)
            else:
                self._hear_apart(events[0])
            return
        frames: list[bytes] = []
        plain: list[bytes] = []
        for data in events:
            if (frame := level.take(data)) is not None:
                frames.append(frame)
                plain.append(data)
                continue
            self._tell(frames, plain, owed)
            frames, plain = [], []
            # What the level owes is written before anybody leaves it, and perhaps writes what comes next.
            pay(owed)
            owed.clear()
            self._hear_apart(data)
        self._tell(frames, plain, owed)

    def _hear_apart(self, data: bytes) -> None:
        """An event that ends the job or doesn't follow the last one."""
        if (message := heard(self.job_id, data)) is None:
            return
        entry, text = message
        self.level.dissolve()
        self.level.follow(entry.id)
        for subscriber in self.subscribers:
            subscriber.offer(entry, text)
        if self.follower is not None:
            self.follower.hear(entry.id)

    def _tell(self, frames: Sequence[bytes], events: Sequence[bytes], owed: list[Owed]) -> None:
        """`frames`: those of `events`, which follow one another."""
        if not frames:
            return
        level = self.level
        joined = frames[0] if len(frames) == 1 else b"".join(frames)
        if level.count:
            level.owe(joined, owed)
        if level.count - level.resting < len(self.subscribers):
            burst = Burst(level.before(len(frames)), level.last, joined, events)
            for subscriber in self.subscribers:
                if not subscriber.is_level:
                    subscriber.offer_burst(burst, level)
        if self.follower is not None:
            self.follower.hear(level.last)

    def level_for(self, subscriber: Subscriber) -> Level | None:
        """The level, if `subscriber` is in it or could be: nothing is to be sent before the next event or read.

        An empty level expects from then on what follows the subscriber's cursor.
        """
        if not subscriber.is_level:
            if not subscriber.is_calm:
                return None
            if self.level.last != subscriber.cursor:
                if self.level.count:
                    return None
                self.level.follow(subscriber.cursor)
        return self.level

    def fall_behind(self) -> None:
        self.level.dissolve()
        for subscriber in self.subscribers:
            subscriber.fall_behind()
        if self.follower is not None:
            self.follower.fall_behind()


class Channels:
    """The channels that are subscribed, or will be when Redis is back."""

    def __init__(self, linger_s: float) -> None:
        self._linger_s = linger_s
        self._channels: dict[int, Channel] = {}
        self._by_name: dict[bytes, Channel] = {}
        self._empty: set[int] = set()
        """Jobs that nobody listens to any more, or somebody does again."""

    def open(self, feed: Feed) -> None:
        """`feed`: it calls `hear` and `fall_behind`."""
        self._feed = feed

    def __iter__(self) -> Iterator[int]:
        """The jobs that anybody listens to."""
        return (job_id for job_id, channel in self._channels.items() if not channel.is_empty)

    def subscribers(self, job_id: int) -> set[Subscriber]:
        channel = self._channels.get(job_id)
        return channel.subscribers if channel is not None else set()

    def level(self, job_id: int) -> Level | None:
        channel = self._channels.get(job_id)
        return channel.level if channel is not None else None

    def is_subscribed(self, job_id: int) -> bool:
        """By subscribers, resting ones too."""
        level = self.level(job_id)
        return bool(self.subscribers(job_id)) or (level is not None and level.count > 0)

    def follower(self, job_id: int) -> Follower | None:
        channel = self._channels.get(job_id)
        return channel.follower if channel is not None else None

    @asynccontextmanager
    async def attached(self, subscriber: Subscriber) -> AsyncIterator[None]:
        """In the fan-out, with the subscription confirmed by Redis (or Redis away: then it follows)."""
        self.add(subscriber)
        try:
            await self.subscribe(subscriber.job_id)
            yield
        finally:
            self.remove(subscriber)

    def add(self, subscriber: Subscriber) -> None:
        """To the fan-out at once; `attached` has to follow."""
        self._occupied(subscriber.job_id).subscribers.add(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        subscriber.leave()
        channel = self._channels.get(subscriber.job_id)
        if channel is not None and subscriber in channel.subscribers:
            channel.subscribers.remove(subscriber)
            if not channel.subscribers:
                channel.subscribers.clear()  # an empty set would keep the room it once needed
            self._left(channel)

    def level_for(self, subscriber: Subscriber) -> Level | None:
        """Where it may rest; None where something is still to be sent or read."""
        channel = self._channels.get(subscriber.job_id)
        return channel.level_for(subscriber) if channel is not None else None

    def follow(self, job_id: int, follower: Follower) -> None:
        """Puts the job's one follower into the fan-out, which begins with `subscribe`."""
        self._occupied(job_id).follower = follower

    async def subscribe(self, job_id: int) -> bool:
        """Whether Redis has confirmed the subscription; if it is away, that follows."""
        return await self._feed.subscribe(_name(job_id))

    def unfollow(self, job_id: int, follower: Follower) -> None:
        channel = self._channels.get(job_id)
        if channel is not None and channel.follower is follower:
            channel.follower = None
            self._left(channel)

    def hearing(self, job_id: int) -> Callable[[], bool]:
        """Asks whether every event that is published now is heard: Redis has confirmed the subscription."""
        return partial(self._feed.is_confirmed, _name(job_id))

    def hear(self, events: Mapping[bytes, Sequence[bytes]]) -> None:
        """All that one read has brought, by job's feed."""
        owed: list[Owed] = []
        try:
            for name, of_job in events.items():
                channel = self._by_name.get(name)
                if channel is None:
                    continue
                try:
                    channel.hear(of_job, owed)
                except Exception:
                    logger.exception("relay: not all could be told; they read the log", job_id=channel.job_id)
                    channel.fall_behind()
        finally:
            pay(owed)

    def note_writes(self) -> None:
        """Tells the lines of all who are level what was written to them."""
        for channel in self._channels.values():
            channel.level.note_writes()

    def fall_behind(self, name: bytes) -> None:
        """Something may have been missed of a job's feed."""
        channel = self._by_name.get(name)
        if channel is not None:
            channel.fall_behind()

    def drop_empty(self) -> None:
        """Ends the subscriptions that nobody has used for `linger_s`."""
        before = asyncio.get_running_loop().time() - self._linger_s
        for job_id in list(self._empty):
            channel = self._channels[job_id]
            if not channel.is_empty:
                self._empty.discard(job_id)
            elif channel.empty_since is not None and channel.empty_since <= before:
                self._empty.discard(job_id)
                del self._channels[job_id], self._by_name[_name(job_id)]
                self._feed.unsubscribe(_name(job_id))

    def _occupied(self, job_id: int) -> Channel:
        channel = self._channels.get(job_id)
        if channel is None:
            channel = self._channels[job_id] = self._by_name[_name(job_id)] = Channel(job_id)
        channel.empty_since = None
        return channel

    def _left(self, channel: Channel) -> None:
        if channel.is_empty:
            channel.empty_since = asyncio.get_running_loop().time()
            self._empty.add(channel.job_id)


def _name(job_id: int) -> bytes:
    return feed_channel(job_id).encode()
