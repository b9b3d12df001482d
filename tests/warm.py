"""Trainers forked from a process that has torch loaded, as a worker's warm start forks them: to load it takes 1.3 to
2.4 s of CPU (2026-11-29).

The process is started when the first test asks, and ends with the tests' own. A trainer's parent is the tests' process,
which adopts orphans.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

from shared.processes import dies_with_parent
from tests import leaks
from worker.fork_server import PRELOADED
from worker.leaving import leave

# Of Python and OpenMP, which read them once; trainers here get no others.
FIXED = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
MODULES = (*PRELOADED, "torch.distributed.checkpoint")
_MAX_PACKET = 256 * 1024


class Forked:
    """What tests use of a subprocess.Popen."""

    def __init__(self, pid: int, stdout: IO[str]) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and timeout is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"trainer {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """A test's own time-out ends a wait for the output."""
        output = "" if self.stdout.closed else self.stdout.read()
        self.stdout.close()
        self.wait(timeout)
        return output, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Forked:
    """`python …` there; its output, both streams, is `stdout`."""
    assert environment.items() >= FIXED.items()
    read, write = os.pipe()
    asked = json.dumps({"arguments": list(arguments), "folder": str(folder), "environment": dict(environment)})
    template = _template()
    socket.send_fds(template, [asked.encode()], [write])
    os.close(write)
    answer = template.recv(32)
    assert answer, "the process with torch loaded has ended"
    return Forked(int(answer), os.fdopen(read))


@cache
def _template() -> socket.socket:
    """Its control socket."""
    control, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far_end:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(far_end.fileno())],
            cwd=Path(__file__).parents[1],
            env={**os.environ, **FIXED, "OPENBLAS_NUM_THREADS": "1"},  # a thread of another's would be lost in a fork
            stdin=subprocess.DEVNULL,
            pass_fds=[far_end.fileno()],
            preexec_fn=dies_with_parent(),
        )
    leaks.KEPT.add(process.pid)
    return control


def _serve(control: socket.socket) -> None:
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, _MAX_PACKET, 1)
        if not packet:
            return
        read, write = os.pipe()
        between = os.fork()
        if between == 0:
            if pid := os.fork():
                os.write(write, b"%d" % pid)
                os._exit(0)
            for descriptor in (read, write, control.fileno()):
                os.close(descriptor)
            _become(json.loads(packet), descriptors[0])
        for descriptor in (write, descriptors[0]):
            os.close(descriptor)
        os.waitpid(between, 0)  # from here on the trainer is the tests' child
        control.send(os.read(read, 32))
        os.close(read)


def _become(asked: dict[str, Any], output: int) -> NoReturn:
    """A trainer, as `python …` would be in that folder."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.path[:1] = [asked["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        _run(asked["arguments"])
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # Not as Python does: a rank of FSDP once ended with "terminate called without an active exception" (torch 2.13),
    # most likely by a thread of gloo that asked for Python's lock while Python took itself apart.
    leave(code, asked["folder"])


def _run(arguments: list[str]) -> None:
    match arguments:
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            sys.modules.pop(module, None)  # it runs as `__main__`
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            sys.argv = ["-c", *rest]
            exec(code, vars(sys.modules["__main__"]))
        case _:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    _serve(socket.socket(fileno=int(sys.argv[1])))
