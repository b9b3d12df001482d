"""The limit of subscribers per job, counted over all gateways: a sorted set of places in Redis that age out."""

import asyncio
import itertools
import secrets
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio
import structlog
from redis.exceptions import RedisError

from api import tasks
from api.limits import Limits
from shared.event_log import slots_key

logger = structlog.get_logger(__name__)

# Scores are Redis' own clock, so that gateways whose clocks differ agree. Redis 6.2 commands only.
_NOW = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
"""
_ACQUIRE = (
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[3])
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[2] * 1000))
return 1
"""
)
# Re-adds what a wiped Redis has forgotten, and never evicts: a live subscriber keeps its place even if others took
# theirs while its gateway stood still.
_REFRESH = (
    _NOW
    + """
local next = 2
for _, key in ipairs(KEYS) do
  local last = next + ARGV[next]
  for index = next + 1, last do redis.call('ZADD', key, now + ARGV[1], ARGV[index]) end
  redis.call('PEXPIRE', key, math.ceil(ARGV[1] * 1000))
  next = last + 1
end
"""
)

# Jobs refreshed by one call: a call each, even in one pipeline, was a quarter of an idle gateway's CPU (2026-11-29).
_AT_ONCE = 100


# Members are numbered, not random each: to ask the kernel is to let go of Python's lock and to wait for it while
# threads read SQL (docs/decisions.md).
_PROCESS = secrets.token_hex(8)
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Slot:
    """One taken place."""

    job_id: int
    member: str = field(default_factory=lambda: f"{_PROCESS}-{next(_numbers)}")


class Slots:
    """Places of this process's subscribers. Without Redis the limit counts per process.

    A gateway that dies stops refreshing, and its places are free `slot_s` later.
    """

    def __init__(self, client: redis.asyncio.Redis, limits: Limits) -> None:
        self._limits = limits
        self._client = client
        self._acquire: Any = client.register_script(_ACQUIRE)
        self._refresh: Any = client.register_script(_REFRESH)
        # A dict of a few keys is a third of a set.
        self._held: defaultdict[int, dict[str, None]] = defaultdict(dict)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_refreshing(), name="slots")

    async def stop(self) -> None:
        """Gives every place back."""
        if self._task is not None:
            await tasks.end([self._task])
        for job_id, members in list(self._held.items()):
            for member in list(members):
                await self.release(Slot(job_id, member))

    async def acquire(self, job_id: int) -> Slot | None:
        """A place, or None when all are taken."""
        if len(self._held.get(job_id, ())) >= self._limits.connections_per_job:
            return None
        slot = Slot(job_id)
        # Counted before Redis answers, so that a crowd that arrives while Redis is away can't slip past together.
        self._held[job_id][slot.member] = None
        try:
            taken = await self._acquire(
                keys=[slots_key(job_id)],
                args=[self._limits.connections_per_job, self._limits.slot_s, slot.member],
            )
        except (RedisError, OSError):
            return slot
        except asyncio.CancelledError:
            self._forget(slot)
            raise
        if taken:
            return slot
        self._forget(slot)
        return None

    async def release(self, slot: Slot) -> None:
        """Gives a place back at once; where Redis is away it ages out."""
        self._forget(slot)
        try:
            await self._client.zrem(slots_key(slot.job_id), slot.member)
        except (RedisError, OSError) as error:
            logger.info("slots: a place ages out", job_id=slot.job_id, error=str(error))

    def _forget(self, slot: Slot) -> None:
        members = self._held.get(slot.job_id)
        if members is not None:
            members.pop(slot.member, None)
            if not members:
                del self._held[slot.job_id]

    async def _keep_refreshing(self) -> None:
        while True:
            await asyncio.sleep(self._limits.slot_refresh_s)
            try:
                await self._refresh_all()
            except (RedisError, OSError) as error:
                logger.info("slots: not refreshed", error=str(error))

    async def _refresh_all(self) -> None:
        held = [(slots_key(job_id), list(members)) for job_id, members in self._held.items()]
        for start in range(0, len(held), _AT_ONCE):
            some = held[start : start + _AT_ONCE]
            places = [word for _, members in some for word in (len(members), *members)]
            await self._refresh(keys=[key for key, _ in some], args=[self._limits.slot_s, *places])
