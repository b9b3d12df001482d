"""Jobs that are polled: followed by the relay's one subscription, so that answers lie in the process until they change.

Long polls wait here too. An event costs one read of Redis for all who wait, and none where nobody asks.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Self

from api import tasks
from api.channels import Channels
from api.connections import Ending, GatewayConnection
from api.snapshots import Answer
from api.standing import Standing
from epochcast.events import BEFORE_ALL, EventId

# So many wake in one turn of the event loop: thousands at once would keep sockets waiting for their messages.
_WOKEN_PER_TURN = 50

Read = Callable[[int], Awaitable[Answer]]


class PolledJob:
    """A job's state as it was read last, for as long as nothing was heard after it."""

    def __init__(self, job_id: int, owner: str, read: Read, channels: Channels) -> None:
        self.job_id = job_id
        self.owner = owner
        self.is_used = True
        """Somebody asked since the last pass."""
        self._read = read
        self._is_heard = channels.hearing(job_id)
        self._answer: Answer | None = None
        self._known = BEFORE_ALL
        self._version = 0
        self.long_polls = 0
        """Requests that wait here, or are just looking whether they still have to."""
        self.waiters: set[asyncio.Future[None]] = set()
        """Woken, and taken out, by the next change."""
        self._together: tuple[int, asyncio.Task[Answer]] | None = None

    @property
    def is_awaited(self) -> bool:
        return self.long_polls > 0

    @property
    def answer(self) -> Answer | None:
        """The state now, if that is known here. None while Redis' subscription is broken."""
        return self._answer if self._is_heard() else None

    async def read(self) -> Answer:
        """Reads the state, and remembers it when nothing can have happened meanwhile. Raises as `snapshots.read`."""
        version, is_heard = self._version, self._is_heard()
        answer = await self._read(self.job_id)
        self._known = max(self._known, answer.last)
        if answer.is_live and is_heard and version == self._version:
            self._answer = answer
        return answer

    async def read_together(self) -> Answer:
        """As `read`, once for all who ask between two events: a crowd that an event woke costs one read."""
        if self._together is None or self._together[0] != self._version:
            task = asyncio.create_task(self.read())
            self._together = self._version, task
            task.add_done_callback(self._was_read)
        return await asyncio.shield(self._together[1])

    def _was_read(self, task: asyncio.Task[Answer]) -> None:
        if self._together is not None and self._together[1] is task:
            self._together = None
        if not task.cancelled():
            task.exception()  # looked at: those who waited may all have gone

    # --- the relay's side

    def hear(self, identifier: EventId) -> None:
        self._known = max(self._known, identifier)
        self.fall_behind()

    def fall_behind(self) -> None:
        self._version += 1
        self._answer = None
        if self.waiters:
            woken, self.waiters = deque(self.waiters), set()
            _wake_some(woken)

    def is_due(self, standing: Standing | None) -> bool:
        """A terminal state whose event was never written is one that SQL alone knows."""
        return (self._answer is not None or self.is_awaited) and standing is not None and standing.last > self._known


class LongPoll:
    """One of a job's waiting requests: from change to change until its time is over."""

    def __init__(self, polled: PolledJob, wait_s: float, connection: GatewayConnection) -> None:
        self._polled = polled
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + wait_s
        self._change: asyncio.Future[None] = self._loop.create_future()
        self.is_over = False
        """Nothing came in time, the gateway stops, or the client is gone."""

    def __enter__(self) -> Self:
        self._polled.long_polls += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._polled.long_polls -= 1
        self._polled.waiters.discard(self._change)

    def listen(self) -> None:
        """From now on changes count: to be called before the state is read, so that none passes in between."""
        self._polled.waiters.discard(self._change)
        self._change = self._loop.create_future()
        self._polled.waiters.add(self._change)

    async def change(self) -> None:
        """Until something was heard after `listen`, or it is over."""
        timer = self._loop.call_at(self._until, self._end)
        try:
            with self._connection.held(self._end):
                await self._change
        finally:
            timer.cancel()

    def _end(self, _ending: Ending | None = None) -> None:
        self.is_over = True
        _wake(self._change)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _wake_some(waiters: deque[asyncio.Future[None]]) -> None:
    for _ in range(min(_WOKEN_PER_TURN, len(waiters))):
        _wake(waiters.popleft())
    if waiters:
        asyncio.get_running_loop().call_soon(_wake_some, waiters)


class Polls:
    """The polled jobs of this process: at most `limit`, those that nobody asks for any more dropped."""

    def __init__(self, channels: Channels, read: Read, limit: int) -> None:
        self._channels = channels
        self._read = read
        self._limit = limit
        self._jobs: dict[int, PolledJob] = {}
        self._asked_once: set[int] = set()
        self._tasks: set[asyncio.Task[bool]] = set()
        self.by_path: dict[str, PolledJob] = {}
        """By the address of their GET, for the fast lane."""

    def __len__(self) -> int:
        return len(self._jobs)

    def asked(self, job_id: int, owner: str) -> PolledJob | None:
        """The job, if it is polled: asked for a second time. Whoever looks once shall leave no subscription."""
        if (polled := self._jobs.get(job_id)) is not None:
            polled.is_used = True
            return polled
        if job_id in self._asked_once:
            return self.follow(job_id, owner)
        if len(self._asked_once) >= self._limit:
            self._asked_once.clear()
        self._asked_once.add(job_id)
        return None

    def follow(self, job_id: int, owner: str) -> PolledJob:
        """The job, followed from now on. Redis confirms a little later; until then nothing is remembered."""
        if (polled := self._jobs.get(job_id)) is not None:
            polled.is_used = True
            return polled
        self._make_room()
        polled = PolledJob(job_id, owner, self._read, self._channels)
        self._jobs[job_id] = polled
        self.by_path[_path(job_id)] = polled
        self._channels.follow(job_id, polled)
        # Not awaited: a Redis that hangs must not delay an answer that SQL can give.
        task = asyncio.create_task(self._channels.subscribe(job_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return polled

    async def stop(self) -> None:
        await tasks.end(self._tasks)

    def forget(self, job_id: int) -> None:
        """What was read of this job may be old."""
        if (polled := self._jobs.get(job_id)) is not None:
            polled.fall_behind()

    def drop_unused(self) -> None:
        """Ends the following of jobs that nobody asked for since the last call."""
        self._asked_once.clear()
        for polled in list(self._jobs.values()):
            if polled.is_awaited:
                continue
            if polled.is_used:
                polled.is_used = False
            else:
                self._drop(polled)

    def _make_room(self) -> None:
        if len(self._jobs) < self._limit:
            return
        unawaited = [polled for polled in self._jobs.values() if not polled.is_awaited]
        # A tenth at once, so that a crawler doesn't pay this search for each job.
        for polled in sorted(unawaited, key=lambda polled: polled.is_used)[: max(1, self._limit // 10)]:
            self._drop(polled)

    def _drop(self, polled: PolledJob) -> None:
        del self._jobs[polled.job_id], self.by_path[_path(polled.job_id)]
        self._channels.unfollow(polled.job_id, polled)


def _path(job_id: int) -> str:
    return f"/api/v1/training-jobs/{job_id}"
