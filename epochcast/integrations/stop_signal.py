"""The wish to stop, for frameworks that can end after a step: SIGTERM, noted instead of obeyed while they train."""

import signal
import threading
from types import FrameType
from typing import Any


class StopSignal:
    """`asked`: whether SIGTERM came since `listen`."""

    def __init__(self) -> None:
        self.asked = False
        self._earlier: Any = None
        self._replaced: Any = None
        self._listens = False

    def listen(self, earlier: Any = None) -> None:
        """Until `leave`. `earlier`: the script's own handler, which is called too; default: the one set now."""
        if self._listens or threading.current_thread() is not threading.main_thread():
            return
        self._replaced = signal.getsignal(signal.SIGTERM)
        if self._replaced is signal.SIG_IGN:
            return
        self._earlier = self._replaced if earlier is None else earlier
        self.asked = False
        self._listens = True
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def leave(self) -> None:
        """What comes after the training is ended by SIGTERM as it always was."""
        if self._listens and self._replaced is not None:
            signal.signal(signal.SIGTERM, self._replaced)
        self._listens = False

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if callable(self._earlier):
            self._earlier(number, frame)
