"""Blocking reads, off the event loop."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import anyio.to_thread

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

# By one query: few enough for any database, and for whoever came first not to wait for all the others.
_AT_ONCE = 100


async def in_thread(call: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(call, abandon_on_cancel=True)


class Batches(Generic[K, V]):
    """What is asked for while a read is under way is read together by the next one, in one thread.

    Nobody gets what was read before they asked. After a break thousands of sockets ask for their jobs at one time: by
    a query and a thread for each, that took more than all the rest (docs/decisions.md).
    """

    def __init__(self, read: Callable[[Sequence[K]], Mapping[K, V]]) -> None:
        """`read`: in a thread; returns what there is of these keys."""
        self._read = read
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """None: there is none. Raises what the read has raised."""
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._keep_reading(), name="batches")
        return await asyncio.shield(waiting)  # others wait for the same

    async def _keep_reading(self) -> None:
        try:
            while self._waiting:
                keys = list(self._waiting)[:_AT_ONCE]
                batch = {key: self._waiting.pop(key) for key in keys}
                await self._settle(batch)
        finally:
            self._task = None

    async def _settle(self, batch: Mapping[K, "asyncio.Future[V | None]"]) -> None:
        try:
            found = await in_thread(lambda: self._read(list(batch)))
        except Exception as error:
            for waiting in batch.values():
                waiting.set_exception(error)
                waiting.exception()  # looked at, should nobody wait any more
        else:
            for key, waiting in batch.items():
                waiting.set_result(found.get(key))
