"""The launcher ends the whole tree: at the trainer's end, at its lifeline's, at its licence's, and when told to."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until
from worker.process_tree import boottime_s, start_time

CHECKOUT = Path(__file__).parents[2]
# Leaves a grandchild in a session of its own behind, as a data loader or a daemon would.
FAMILY = (
    "import subprocess, sys, time; c = subprocess.Popen(['setsid', 'sleep', '600']); print(c.pid, flush=True); {rest}"
)


class Launched:
    def __init__(self, code: str, folder: Path, licence_s: float, early: dict[str, Any] | None = None) -> None:
        """`early`: an order that waits on the lifeline before the launcher is there."""
        self.lifeline, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if early is not None:
            self.tell(**early)
        self.lifeline.settimeout(20)
        self.stdout, stdout_end = os.pipe()
        stderr_end = os.dup(stdout_end)
        arguments = [far_end.fileno(), stdout_end, stderr_end, boottime_s() + licence_s, folder]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker.launcher", *map(str, arguments), sys.executable, "-c", code],
            cwd=CHECKOUT,
            pass_fds=[far_end.fileno(), stdout_end, stderr_end],
        )
        far_end.close()
        os.close(stdout_end)
        os.close(stderr_end)
        self.trainer = int(self.hear()["trainer"])

    def hear(self) -> dict[str, Any]:
        packet: dict[str, Any] = json.loads(self.lifeline.recv(4096))
        return packet

    def tell(self, **packet: object) -> None:
        self.lifeline.send(json.dumps(packet).encode())

    def grandchild(self) -> int:
        return int(self.read_line())

    def read_line(self) -> bytes:
        """The next line that the trainer printed; it may come in pieces."""
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self.stdout, 1)
        return line

    def close(self) -> None:
        self.lifeline.close()
        os.close(self.stdout)
        self.process.wait(10)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Any]:
    launched: list[Launched] = []

    def start(code: str, licence_s: float = 60, early: dict[str, Any] | None = None) -> Launched:
        launched.append(Launched(code, tmp_path, licence_s, early))
        return launched[-1]

    yield start
    for one in launched:
        one.close()


def assert_gone(*pids: int) -> None:
    wait_until(lambda: all(start_time(pid) is None for pid in pids), f"the end of {pids}", timeout_s=2)


def test_the_trainers_end_takes_along_what_it_left(launch: Any) -> None:
    launched = launch(FAMILY.format(rest="sys.exit(7)"))
    grandchild = launched.grandchild()
    assert launched.hear() == {"exit": 7, "cut": None}
    assert start_time(grandchild) is None, "gone before the exit was said"


def test_a_lost_supervisor_ends_the_tree(launch: Any) -> None:
    launched = launch(FAMILY.format(rest="time.sleep(600)"))
    grandchild = launched.grandchild()
    launched.lifeline.shutdown(socket.SHUT_RDWR)
    assert_gone(launched.trainer, grandchild)
    assert launched.process.wait(5) == 0


def test_a_licence_that_runs_out_ends_the_tree_unless_it_was_renewed(launch: Any) -> None:
    launched = launch(FAMILY.format(rest="time.sleep(600)"), licence_s=1.0)
    grandchild = launched.grandchild()
    renewed_until = boottime_s() + 2.5
    launched.tell(licence=renewed_until)
    assert launched.hear() == {"exit": -9, "cut": "licence"}
    assert boottime_s() >= renewed_until
    assert_gone(launched.trainer, grandchild)


def test_signals_go_to_the_trainer_only_and_a_kill_to_everything(launch: Any) -> None:
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True)); "
    launched = launch(code + FAMILY.format(rest="[time.sleep(1) for _ in range(600)]"))
    grandchild = launched.grandchild()
    launched.tell(signal="SIGTERM")
    assert launched.read_line() == b"asked\n"
    assert start_time(grandchild) is not None
    launched.tell(kill=True)
    assert launched.hear() == {"exit": -9, "cut": "ordered"}
    assert_gone(launched.trainer, grandchild)


@pytest.mark.parametrize("attempt", range(5))
def test_a_stop_that_was_asked_before_the_trainer_is_there_ends_it(launch: Any, attempt: int) -> None:
    launched = launch("import time; time.sleep(600)", early={"signal": "SIGTERM"})
    assert launched.hear() == {"exit": -15, "cut": None}


def test_a_frozen_trainer_is_ended_all_the_same(launch: Any) -> None:
    launched = launch(FAMILY.format(rest="time.sleep(600)"))
    grandchild = launched.grandchild()
    os.kill(launched.trainer, signal.SIGSTOP)
    launched.tell(kill=True)
    assert launched.hear() == {"exit": -9, "cut": "ordered"}
    assert_gone(grandchild)
