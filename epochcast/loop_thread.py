"""An event loop in a thread of its own, for blocking callers: also where a loop already runs, as in a notebook."""

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")
CANCEL_S = 5.0


class LoopThread:
    """Started at once; `close` ends it. A daemon, so that a forgotten client doesn't keep a script alive."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="epochcast-client", daemon=True)
        self._thread.start()
        # At the interpreter's end daemon threads stop answering: whoever waits for them then waits for ever.
        atexit.register(self.close)

    @property
    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def run(self, work: Awaitable[T]) -> T:
        """The result of `work`. Interrupted (Ctrl-C), it is cancelled and waited for before the interrupt goes on."""
        done: Future[T] = Future()
        handle = asyncio.run_coroutine_threadsafe(_settle(work, done), self._loop)
        try:
            return done.result()
        except BaseException:
            if not done.done():
                handle.cancel()
                wait([done], CANCEL_S)
            raise

    def close(self) -> None:
        if self.is_closed:
            return
        atexit.unregister(self.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _settle(work: Awaitable[T], done: "Future[T]") -> Coroutine[Any, Any, None]:
    """Runs `work` and tells `done`, which (unlike the future of its task) waits for a cancelled task's clean-up."""

    async def settle() -> None:
        try:
            result = await work
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)

    return settle()
