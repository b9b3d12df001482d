"""A pseudo-terminal with a command on it: what it paints, and keys for it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from typing import Self

from tests.waiting import wait_until

PATIENCE_S = 60.0
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-B0-2]|\x1b[=>]|[\x00-\x08\x0e-\x1f]")


class PseudoTerminal:
    """Runs the command as a shell would: the terminal is its own, and Ctrl-C on it is SIGINT."""

    def __init__(self, command: list[str], environment: dict[str, str], columns: int = 120) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.painted = ""
        self._bytes = b""
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    @property
    def text(self) -> str:
        """All that was painted, without what steers the terminal."""
        return _CONTROL.sub("", self.painted)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, text: str) -> None:
        """Waits until `text` has been painted after now."""
        start = len(self.text)

        def is_there() -> bool:
            self._read()
            return text in self.text[start:]

        try:
            wait_until(is_there, f"{text!r} on the terminal", timeout_s=PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; it shows:\n{self.text}") from None

    def ended(self) -> int:
        """Waits for the end; the exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read() and time.monotonic() < deadline:
            pass
        return self.process.wait(PATIENCE_S)

    def _read(self) -> bool:
        """Takes what is there, within a moment; False: the other side is closed."""
        while select.select([self._ours], [], [], 0.1)[0]:
            try:
                new = os.read(self._ours, 65536)
            except OSError:  # EIO
                return False
            if not new:
                return False
            self._bytes += new
            self.painted = self._bytes.decode(errors="replace")
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
