"""Warm start, as the agent and the supervisors see it: the fork server's keeper, and which attempts start warm."""

import contextlib
import json
import signal
import site
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from epochcast.jobs import TrainingJobSpec
from shared.processes import dies_with_parent
from worker.environments import REQUIREMENTS
from worker.process_tree import send, start_time, subtrees_except
from worker.workspace import CHECKOUT, TRAINER

logger = structlog.get_logger(__name__)

FORKS_WITHIN_S = 2.0
LOADS_WITHIN_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
_MAX_PACKET = 64 * 1024
# Read when torch, OpenMP or CUDA are loaded, which has happened by the time a warm trainer gets its environment.
_READ_WHEN_LOADED = (
    "ATEN_", "CUDA_", "CUBLAS_", "CUDNN_", "GLIBC_", "GOMP_", "GOTO_", "JOBLIB_", "KMP_", "LOKY_", "MALLOC_", "MKL_",
    "NPY_", "NUMEXPR_", "NUMPY_", "NVIDIA_", "OMP_", "OPENBLAS_", "PYTORCH_", "SCIPY_", "SKLEARN_", "SYMPY_", "TORCH",
    "TRITON_",
)  # fmt: skip


def starts_warm(trainer: Sequence[str], spec: TrainingJobSpec, work: Path) -> bool:
    """Whether an attempt may be forked: it needs no environment of its own, and sets nothing that is read too early.

    `trainer`: its command; another program than ours can only be executed.
    """
    if tuple(trainer) != TRAINER:
        return False
    if spec.bundle is not None and (work / REQUIREMENTS).exists():
        return False
    return not any(name.startswith(_READ_WHEN_LOADED) for name in spec.env)


class ForkServerFailed(Exception):
    """Raised when the fork server could not fork. It is ended with all that it may have forked; start cold."""


class ForkServerKeeper:
    """Starts this host's fork server, asks it for launchers, and replaces it when it dies or its packages change.

    Owned by one thread, the agent's main thread: the server ends with it.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment`: all that the server gets, and so what any of its descendants can read of it."""
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._installed: tuple[tuple[str, int], ...] = ()
        self._is_wanted = False
        self._may_start_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._deadline = 0.0
        self._control: socket.socket | None = None
        self.is_ready = False

    @property
    def is_loading(self) -> bool:
        """Whether it will be ready in a moment."""
        return self._process is not None and not self.is_ready

    @property
    def is_doubtful(self) -> bool:
        """Whether one has failed since the last fork: nobody should wait for the next."""
        return self._pause_s > FIRST_PAUSE_S

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def ensure(self) -> None:
        """From here on there shall be a server, which holds what is installed now. After one that failed there is a
        pause, longer each time until a server has forked."""
        self._is_wanted = True
        if self._process is not None and self._installed != _installed():
            logger.info("fork server: packages have changed; it is replaced")
            self.end()
        if self._process is None and time.monotonic() >= self._may_start_at:
            self._start()

    def _start(self) -> None:
        self._installed = _installed()
        self._deadline = time.monotonic() + LOADS_WITHIN_S
        control, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far_end:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "worker.fork_server", str(far_end.fileno())],
                    cwd=CHECKOUT,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[far_end.fileno()],
                    preexec_fn=dies_with_parent(),
                )
            except OSError as error:
                logger.error("fork server: it could not be started", error=str(error))
                control.close()
                self._fail()
                return
        self._control = control

    def watch(self) -> None:
        """From time to time: hears that the server is ready or has died; one that doesn't get ready is given up."""
        if self._control is None:
            if self._is_wanted:
                self.ensure()
            return
        self._control.setblocking(False)
        try:
            packet = self._control.recv(_MAX_PACKET)
        except BlockingIOError:
            if self.is_loading and time.monotonic() > self._deadline:
                logger.error("fork server: it did not get ready", seconds=LOADS_WITHIN_S)
                self._fail()
            return
        except OSError:
            packet = b""
        if packet and json.loads(packet).get("ready"):
            self.is_ready = True
        else:
            logger.error("fork server: it died; attempts start cold until it is back")
            self._fail()

    def fork(self, request: Mapping[str, Any], descriptors: Sequence[int], launchers: set[int]) -> int:
        """Has it fork a launcher for `request`; its pid. `launchers`: those that it has forked before and that live.

        Raises ForkServerFailed.
        """
        assert self._control is not None
        self._control.settimeout(FORKS_WITHIN_S)
        try:
            socket.send_fds(self._control, [json.dumps(request).encode()], list(descriptors))
            answer = json.loads(self._control.recv(_MAX_PACKET) or b'{"refused": "it died"}')
        except OSError as error:
            answer = {"refused": f"it does not answer: {error}"}
        if "launcher" not in answer:
            self._fail(launchers)
            raise ForkServerFailed(answer.get("refused", "it gave no answer"))
        self._pause_s = FIRST_PAUSE_S
        return int(answer["launcher"])

    def _fail(self, launchers: set[int] | None = None) -> None:
        self._may_start_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self.end(launchers)

    def end(self, launchers: set[int] | None = None) -> None:
        """Ends the server. `launchers`: those that it has told of; any other child, forked for a request that it was
        too late to answer, ends with it."""
        process, self._process, self.is_ready = self._process, None, False
        if self._control is not None:
            self._control.close()
            self._control = None
        if process is None:
            return
        started = start_time(process.pid)
        if started is not None:
            send(process.pid, signal.SIGSTOP)  # it forks nothing more
            if launchers is not None:
                for pid in subtrees_except(process.pid, launchers):
                    send(pid, signal.SIGKILL)
            process.kill()
        with contextlib.suppress(ChildProcessError):
            process.wait()


def _installed() -> tuple[tuple[str, int], ...]:
    """Changes when something is installed or removed where the server's modules come from."""
    folders = [Path(folder) for folder in site.getsitepackages()]
    return tuple((str(folder), folder.stat().st_mtime_ns) for folder in folders if folder.is_dir())
