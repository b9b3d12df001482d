"""How other threads ask a supervisor's loop to end the attempt."""

import os
import threading

from worker.outcome import Cut


class Requests:
    """A mailbox with a descriptor to select on."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._waiting: list[Cut] = []

    def fileno(self) -> int:
        return self._event

    def ask(self, cut: Cut) -> None:
        """Callable from any thread, also after the loop has ended."""
        with self._lock:
            self._waiting.append(cut)
            os.eventfd_write(self._event, 1)

    def wake(self) -> None:
        """There is something else for the loop than a request to end."""
        with self._lock:
            os.eventfd_write(self._event, 1)

    def take(self) -> list[Cut]:
        """What was asked since the last time."""
        with self._lock:
            try:
                os.eventfd_read(self._event)
            except BlockingIOError:
                return []
            taken, self._waiting = self._waiting, []
            return taken

    def has(self, cut: Cut) -> bool:
        """Whether this is among what was asked and not taken yet."""
        with self._lock:
            return cut in self._waiting

    def close(self) -> None:
        os.close(self._event)
