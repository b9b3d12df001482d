"""Who listens to which job's live feed: one subscription a job, kept for a while after the last listener."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from api.feed import Feed
from api.standing import Standing
from api.subscriber import Subscriber
from epochcast.events import EventId
from shared.event_log import Entry, feed_channel


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

    subscribers: set[Subscriber] = field(default_factory=set)
    follower: Follower | None = None
    empty_since: float | None = None

    @property
    def is_empty(self) -> bool:
        return not self.subscribers and self.follower is None


class Channels:
    """The channels that are subscribed, or will be when Redis is back."""

    def __init__(self, feed: Feed, linger_s: float) -> None:
        self._feed = feed
        self._linger_s = linger_s
        self._channels: dict[int, Channel] = {}

    def __iter__(self) -> Iterator[int]:
        """The jobs that anybody listens to."""
        return (job_id for job_id, channel in self._channels.items() if not channel.is_empty)

    def subscribers(self, job_id: int) -> set[Subscriber]:
        channel = self._channels.get(job_id)
        return channel.subscribers if channel is not None else set()

    def follower(self, job_id: int) -> Follower | None:
        channel = self._channels.get(job_id)
        return channel.follower if channel is not None else None

    @asynccontextmanager
    async def attached(self, subscriber: Subscriber) -> AsyncIterator[None]:
        """In the fan-out, with the subscription confirmed by Redis (or Redis away: then it follows)."""
        job_id = subscriber.job_id
        channel = self._occupied(job_id)
        channel.subscribers.add(subscriber)
        try:
            await self.subscribe(job_id)
            yield
        finally:
            channel.subscribers.discard(subscriber)
            self._left(channel)

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

    def hears(self, job_id: int) -> bool:
        return job_id in self._channels

    def publish(self, job_id: int, entry: Entry, text: str) -> None:
        channel = self._channels.get(job_id)
        if channel is None:
            return
        for subscriber in channel.subscribers:
            subscriber.offer(entry, text)
        if channel.follower is not None:
            channel.follower.hear(entry.id)

    def fall_behind(self, job_id: int) -> None:
        channel = self._channels.get(job_id)
        if channel is None:
            return
        for subscriber in channel.subscribers:
            subscriber.fall_behind()
        if channel.follower is not None:
            channel.follower.fall_behind()

    async def drop_empty(self) -> None:
        """Ends the subscriptions that nobody has used for `linger_s`."""
        before = asyncio.get_running_loop().time() - self._linger_s
        for job_id, channel in list(self._channels.items()):
            # Somebody may have come while another channel was dropped.
            if channel.is_empty and channel.empty_since is not None and channel.empty_since <= before:
                del self._channels[job_id]
                await self._feed.unsubscribe(_name(job_id))

    def _occupied(self, job_id: int) -> Channel:
        channel = self._channels.setdefault(job_id, Channel())
        channel.empty_since = None
        return channel

    def _left(self, channel: Channel) -> None:
        if channel.is_empty:
            channel.empty_since = asyncio.get_running_loop().time()


def _name(job_id: int) -> bytes:
    return feed_channel(job_id).encode()
