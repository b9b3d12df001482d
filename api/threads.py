"""Blocking reads, off the event loop, and answered in time."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

import anyio
import anyio.to_thread

from shared.database import DatabaseUnavailable

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

# A 503 is promised within 2 s, and a connection to a black hole alone takes libpq that long.
_ANSWER_S = 1.8
# By one query: few enough for any database, and for whoever came first not to wait for all the others.
_AT_ONCE = 100
# Who asks later doesn't wait for a read that takes longer.
_PROMPT_S = 0.25
# So many of those may be under way.
_READS = 4


async def in_thread(call: Callable[[], T], limiter: anyio.CapacityLimiter | None = None) -> T:
    """`limiter`: bounds the threads, instead of anyio's own. Whoever is cancelled leaves the call to itself."""
    return await anyio.to_thread.run_sync(call, limiter=limiter, abandon_on_cancel=True)


async def in_time(answer: Awaitable[T]) -> T:
    """What SQL answers. Raises DatabaseUnavailable, within 2 s."""
    with anyio.move_on_after(_ANSWER_S):
        return await answer
    raise DatabaseUnavailable(f"no answer from SQL in {_ANSWER_S:g} s")


class Batches(Generic[K, V]):
    """What is asked for while a read of SQL is under way is read together by the next one.

    Nobody gets what was read before they asked. After a break thousands of sockets ask for their jobs at one time: by
    a query and a thread for each, that took more than all the rest (docs/decisions.md).
    """

    def __init__(self, read: Callable[[Sequence[K]], Mapping[K, V]]) -> None:
        """`read`: in a thread; returns what there is of these keys. What it raises for one of several keys (but
        DatabaseUnavailable) is found and raised for that one alone."""
        self._read = read
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._begins: asyncio.Task[None] | None = None
        self._reads: set[asyncio.Task[None]] = set()

    async def get(self, key: K) -> V | None:
        """None: there is none. Raises DatabaseUnavailable, within 2 s, or what the read has raised."""
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._begins is None or self._begins.done():
            self._begins = asyncio.create_task(self._begin_reads(), name="batches")
        return await in_time(asyncio.shield(waiting))  # others wait for the same

    async def _begin_reads(self) -> None:
        """One after the other, unless they are slow."""
        while self._waiting:
            keys = list(self._waiting)[:_AT_ONCE]
            read = asyncio.create_task(self._settle({key: self._waiting.pop(key) for key in keys}))
            self._reads.add(read)
            read.add_done_callback(self._reads.discard)
            await asyncio.wait([read], timeout=_PROMPT_S)
            if len(self._reads) >= _READS:
                await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)

    async def _settle(self, batch: Mapping[K, "asyncio.Future[V | None]"]) -> None:
        try:
            found = await in_time(in_thread(lambda: self._read(list(batch))))
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, DatabaseUnavailable):
                entries = list(batch.items())
                for half in (entries[: len(entries) // 2], entries[len(entries) // 2 :]):
                    await self._settle(dict(half))
                return
            for waiting in batch.values():
                waiting.set_exception(error)
                waiting.exception()  # looked at, should nobody wait any more
        else:
            for key, waiting in batch.items():
                waiting.set_result(found.get(key))
        finally:
            for waiting in batch.values():
                waiting.cancel()  # does nothing to one that is answered
