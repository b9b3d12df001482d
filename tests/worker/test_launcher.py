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
    def __init__(
        self, code: str, folder: Path, licence_s: float, early: dict[str, Any] | None = None, processes: int = 1
    ) -> None:
        """`early`: an order that waits on the lifeline before the launcher is there."""
        self.licence = boottime_s() + licence_s
        self.lifeline, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if early is not None:
            self.tell(**early)
        self.lifeline.settimeout(60)
        self.stdout, stdout_end = os.pipe()
        stderr_end = os.dup(stdout_end)
        descriptors = [far_end.fileno(), *[stdout_end, stderr_end] * processes]
        descriptors[1:] = [os.dup(end) for end in descriptors[1:]]
        request = {
            "licence": self.licence,
            "cwd": str(folder),
            "argv": [sys.executable, "-c", code],
            "first_rank": 0,
            "ranked": processes > 1,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker.launcher", json.dumps(request), *map(str, descriptors)],
            cwd=CHECKOUT,
            pass_fds=descriptors,
        )
        far_end.close()
        for descriptor in (stdout_end, stderr_end, *descriptors[1:]):
            os.close(descriptor)
        self.trainers: list[int] = self.hear()["trainers"]
        self.trainer = self.trainers[0]

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
        self.process.wait(30)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Any]:
    launched: list[Launched] = []

    def start(code: str, licence_s: float = 60, early: dict[str, Any] | None = None, processes: int = 1) -> Launched:
        launched.append(Launched(code, tmp_path, licence_s, early, processes))
        return launched[-1]

    yield start
    for one in launched:
        one.close()


def assert_gone(*pids: int) -> None:
    wait_until(lambda: all(start_time(pid) is None for pid in pids), f"the end of {pids}", timeout_s=20)


def test_the_trainers_end_takes_along_what_it_left(launch: Any) -> None:
    launched = launch(FAMILY.format(rest="sys.exit(7)"))
    grandchild = launched.grandchild()
    assert launched.hear() == {"exit": 7, "rank": 0, "cut": None}
    assert start_time(grandchild) is None, "gone before the exit was said"


def test_a_lost_supervisor_ends_the_tree(launch: Any) -> None:
    launched = launch(FAMILY.format(rest="time.sleep(600)"))
    grandchild = launched.grandchild()
    launched.lifeline.shutdown(socket.SHUT_RDWR)
    assert_gone(launched.trainer, grandchild)
    assert launched.process.wait(30) == 0


def test_a_licence_that_runs_out_ends_the_tree_unless_it_was_renewed(launch: Any) -> None:
    launched = launch(FAMILY.format(rest="time.sleep(600)"), licence_s=6.0)  # the launcher starts within it
    grandchild = launched.grandchild()
    renewed_until = launched.licence + 1.0
    launched.tell(licence=renewed_until)
    assert launched.hear() == {"exit": -9, "rank": 0, "cut": "licence"}
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
    assert launched.hear() == {"exit": -9, "rank": 0, "cut": "ordered"}
    assert_gone(launched.trainer, grandchild)


@pytest.mark.parametrize("attempt", range(5))
def test_a_stop_that_was_asked_before_the_trainer_is_there_ends_it(launch: Any, attempt: int) -> None:
    launched = launch("import time; time.sleep(600)", early={"signal": "SIGTERM"})
    assert launched.hear() == {"exit": -15, "rank": 0, "cut": None}


def test_a_frozen_trainer_is_ended_all_the_same(launch: Any) -> None:
    launched = launch(FAMILY.format(rest="time.sleep(600)"))
    grandchild = launched.grandchild()
    os.kill(launched.trainer, signal.SIGSTOP)
    launched.tell(kill=True)
    assert launched.hear() == {"exit": -9, "rank": 0, "cut": "ordered"}
    assert_gone(grandchild)


def test_each_process_is_told_its_rank_and_all_that_end_well_are_a_success(launch: Any) -> None:
    launched = launch(
        "import os; os.write(1, f\"{os.environ['RANK']} {os.environ['LOCAL_RANK']}\\n\".encode())", processes=3
    )
    assert sorted(launched.read_line() for _ in range(3)) == [b"0 0\n", b"1 1\n", b"2 2\n"]
    assert launched.hear() == {"exit": 0, "rank": 0, "cut": None}


def test_the_first_process_that_fails_takes_the_others_along_and_is_named(launch: Any) -> None:
    launched = launch("import os, sys, time; os.environ['RANK'] == '2' and sys.exit(5); time.sleep(600)", processes=4)
    assert launched.hear() == {"exit": 5, "rank": 2, "cut": None}
    assert_gone(*launched.trainers)


def test_after_a_stop_each_process_ends_in_its_own_time(launch: Any) -> None:
    code = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3) if os.environ["RANK"] == "1" else sys.exit(time.sleep(0.5)))
os.write(1, b"ready\\n")
while True:
    time.sleep(1)
"""
    launched = launch(code, processes=2)
    assert [launched.read_line(), launched.read_line()] == [b"ready\n"] * 2
    launched.tell(signal="SIGTERM")
    assert launched.hear() == {"exit": 3, "rank": 1, "cut": None}


def test_a_start_that_its_supervisor_gave_up_starts_nothing(tmp_path: Path) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.close()
    start_late(far, tmp_path, licence_s=60)
    assert not (tmp_path / "started").exists()


def test_a_start_that_comes_after_the_licence_starts_nothing(tmp_path: Path) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near:
        start_late(far, tmp_path, licence_s=0)
        said = [json.loads(near.recv(4096)) for _ in range(2)]
    assert said == [{"trainers": []}, {"exit": None, "rank": 0, "cut": "licence"}]
    assert not (tmp_path / "started").exists()


def start_late(far: socket.socket, folder: Path, licence_s: float) -> None:
    """To the launcher's end."""
    out, end = os.pipe()
    request = {
        "licence": boottime_s() + licence_s, "cwd": str(folder), "first_rank": 0, "ranked": False,
        "argv": [sys.executable, "-c", "open('started', 'w')"],
    }  # fmt: skip
    descriptors = [far.fileno(), end, os.dup(end)]
    launcher = [sys.executable, "-m", "worker.launcher", json.dumps(request), *map(str, descriptors)]
    subprocess.run(launcher, cwd=CHECKOUT, pass_fds=descriptors, check=False, timeout=60)
    far.close()
    for descriptor in (out, *descriptors[1:]):
        os.close(descriptor)
