"""Ends tasks for certain."""

import asyncio
from collections.abc import Iterable
from typing import Any

# A task that hasn't ended by then is cancelled again: longer than giving a place back takes with a slow Redis.
_PATIENCE_S = 1.0


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels the tasks and waits until they have ended, however that was.

    Once is not enough: before Python 3.12 `asyncio.wait_for`, in which redis-py sends each command, loses a
    cancellation that comes at the moment of its success, and the task runs on (seen with redis-py 8.1, Python 3.11).
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=_PATIENCE_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # looked at, so that asyncio doesn't call it forgotten
