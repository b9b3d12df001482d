"""How the agent starts launchers: forked warm where an attempt allows it, else as a new program."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import structlog

from worker.process_tree import send, subtrees_except
from worker.warm_start import ForkServerFailed, ForkServerKeeper
from worker.workspace import CHECKOUT

logger = structlog.get_logger(__name__)

# Until then a fork server that is still importing is sooner ready than a new program that has to do the same.
WAIT_FOR_IMPORTS_S = 25.0


@dataclass(slots=True)
class Start:
    """A supervisor's request. `descriptors`: the launcher's ends of lifeline and streams, owned by this object."""

    request: dict[str, Any]
    descriptors: list[int]
    since: float

    @classmethod
    def of(cls, request: dict[str, Any], descriptors: list[int]) -> "Start":
        """Takes copies of the descriptors: the request may have to wait."""
        return cls(request, [os.dup(descriptor) for descriptor in descriptors], time.monotonic())

    @property
    def may_be_warm(self) -> bool:
        return bool(self.request.get("warm"))

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []


class Starter:
    """Holds requests until they can be met. Owned by the agent's main thread."""

    def __init__(self, fork_server: ForkServerKeeper) -> None:
        self._fork_server = fork_server

    def preload(self) -> None:
        """Has the fork server ready before the first attempt asks for it."""
        self._fork_server.ensure()

    @property
    def own_processes(self) -> set[int]:
        """Children of the agent that are no launchers."""
        return {self._fork_server.pid} if self._fork_server.pid is not None else set()

    def watch(self) -> None:
        """From time to time: hears that the fork server is ready, or has died."""
        self._fork_server.watch()

    def must_wait(self, start: Start) -> bool:
        """Whether it is better to start this one a moment later."""
        if not start.may_be_warm:
            return False
        self._fork_server.ensure()
        if self._fork_server.is_doubtful or time.monotonic() - start.since > WAIT_FOR_IMPORTS_S:
            return False
        return self._fork_server.is_loading

    def start(self, start: Start, launchers: set[int]) -> int:
        """The new launcher's pid. `launchers`: those that live. Raises OSError."""
        if start.may_be_warm and self._fork_server.is_ready:
            try:
                return self._fork_server.fork(start.request, start.descriptors, launchers)
            except ForkServerFailed as error:
                logger.error("fork server: an attempt starts cold instead", error=str(error))
                # One that it had forked when it died is our child by now: it must not start trainers beside these.
                while strays := subtrees_except(os.getpid(), launchers):
                    for pid in strays:
                        send(pid, signal.SIGKILL)
                    time.sleep(0.005)
        return _execute(start)

    def close(self) -> None:
        self._fork_server.end()


def _execute(start: Start) -> int:
    request = {name: value for name, value in start.request.items() if name != "env"}
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.launcher", json.dumps(request), *map(str, start.descriptors)],
        cwd=CHECKOUT,
        env=start.request["env"],
        stdin=subprocess.DEVNULL,
        pass_fds=start.descriptors,
        close_fds=True,
    )
    process.returncode = 0  # the agent collects every child itself; Popen must not wait for it as well
    return process.pid
