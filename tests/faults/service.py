"""One process of the platform that a test may kill, freeze, end and start again."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from shared.processes import dies_with_parent, end
from tests.waiting import wait_until
from worker.process_tree import descendants, send, start_time

CHECKOUT = Path(__file__).parents[2]


class Service:
    """`python -m module` with its output in `log`; each start has the same environment."""

    def __init__(self, module: str, environment: dict[str, str], log: Path, *arguments: str) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._environment = environment
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                cwd=CHECKOUT,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dies_with_parent(),
            )

    def tree(self) -> list[int]:
        """Every process below it."""
        return descendants(self.pid)

    def kill(self) -> list[int]:
        """`kill -9` of the process itself; the pids that were below it."""
        below = self.tree()
        send(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait()
        return below

    def freeze(self) -> None:
        send(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        send(self.pid, signal.SIGCONT)

    def end(self, grace_s: float = 60) -> int:
        """SIGTERM, and waits; kills it after the grace. The exit code."""
        assert self.process is not None
        self.thaw()
        return end(self.process, grace_s)


def names_of(pids: list[int]) -> dict[int, str]:
    """Those that have ended since are left out: a fork server's helpers come and go."""
    found = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[pid] = psutil.Process(pid).name()
    return found


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if start_time(pid) is not None]


def wait_gone(pids: list[int], what: str, timeout_s: float = 2.0) -> None:
    """I7, seen by the test itself."""
    wait_until(lambda: not alive(pids), f"the end of {what}", timeout_s=timeout_s)
