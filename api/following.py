"""One client's way through one job's events: its place, its subscriber, its messages."""

from dataclasses import dataclass

from api.channels import Channels
from api.closes import TOO_MANY_CONNECTIONS, Close, Refused
from api.delivery import Delivery
from api.history import History
from api.level import Level
from api.limits import Limits
from api.peer import Peer
from api.slots import Slot, Slots
from api.subscriber import Outbox, Subscriber
from epochcast.events import EventId
from epochcast.jobs import TrainingJob


@dataclass(frozen=True, slots=True)
class Sources:
    """Of one relay, for all who follow."""

    channels: Channels
    history: History
    slots: Slots
    limits: Limits


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left of a following while nothing but live events is to be sent: its place, and all before them sent."""

    slot: Slot
    level: Level


class Following:
    """Goes on from a job's record and the client's cursor, or from a rest, until it ends or comes to rest."""

    def __init__(self, sources: Sources, job_id: int) -> None:
        self._sources = sources
        self._job_id = job_id
        self._slot: Slot | None = None
        self._subscriber: Subscriber | None = None

    async def begin(self, peer: Peer, record: TrainingJob, after: EventId | None) -> Close | None:
        """Sends a job's messages until they end, or until it comes to rest (None). Raises Refused."""
        subscriber = self._subscribed(peer)
        async with self._sources.channels.attached(subscriber):
            return await Delivery(subscriber, self._sources.history, peer.send).run(record, after)

    async def begin_in_place(self, peer: Peer, record: TrainingJob, after: EventId | None) -> Close | None:
        """As `begin`, in one of the job's places."""
        self._slot = await self._sources.slots.acquire(self._job_id)
        if self._slot is None:
            raise Refused(TOO_MANY_CONNECTIONS)
        try:
            return await self.begin(peer, record, after)
        finally:
            await self._leave_place()

    def rest(self) -> Rest | None:
        """Ends it, but keeps its place, if nothing is to be sent or read now.

        Before anything more is heard, the level has to get somebody in its stead.
        """
        subscriber = self._subscriber
        if subscriber is None or self._slot is None:
            return None
        level = self._sources.channels.level_for(subscriber)
        if level is None:
            return None
        self._sources.channels.remove(subscriber)
        subscriber.come_to_rest()
        rest, self._slot, self._subscriber = Rest(self._slot, level), None, None
        return rest

    def wake(self, peer: Peer, rest: Rest) -> None:
        """Hears from now on what its level has heard until now; `go_on` has to follow."""
        self._slot = rest.slot
        subscriber = self._subscribed(peer)
        subscriber.cursor = rest.level.last
        subscriber.is_behind = False
        self._sources.channels.add(subscriber)

    async def go_on(self, peer: Peer) -> Close | None:
        """As `begin`, after `wake`."""
        subscriber = self._subscriber
        assert subscriber is not None
        try:
            async with self._sources.channels.attached(subscriber):
                return await Delivery(subscriber, self._sources.history, peer.send).go_on()
        finally:
            await self._leave_place()

    def _subscribed(self, peer: Peer) -> Subscriber:
        outbox = Outbox(self._sources.limits.queue_bytes, peer.end)
        self._subscriber = Subscriber(self._job_id, outbox, peer.line)
        return self._subscriber

    async def _leave_place(self) -> None:
        if self._slot is not None:
            await self._sources.slots.release(self._slot)
