"""What a silent attempt is doing: every process answers for itself, or it is said why it can't."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.listening import Attempt, listening
from tests.waiting import wait_until
from worker.process_tree import descendants, send
from worker.stacks import Stacks, collect

SCRIPT = """
import ctypes, os, signal, subprocess, sys, threading, time
from torch.utils.data import DataLoader, Dataset
{code}
"""


def silent(tmp_path: Path, code: str, look: Callable[[list[Stacks], int], bool], rank: str = "0") -> list[Stacks]:
    """The stacks once `look` is content with them; the script runs in a real trainer below this process."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(code=code))
    with listening(tmp_path / "attempt", script=str(script)) as attempt:
        process = attempt.start("-m", "worker.trainer", RANK=rank)
        try:
            wait_until(lambda: (attempt.folder / "ready").exists(), "the script", timeout_s=60)

            def seen() -> list[Stacks]:
                found = [one for one in collect(os.getpid(), attempt.folder) if _is_of(one, process.pid, attempt)]
                return found if look(found, process.pid) else []

            return wait_until(seen, "the stacks", timeout_s=30)
        finally:
            kill_tree(process.pid)
            process.communicate()


def _is_of(stacks: Stacks, trainer: int, attempt: Attempt) -> bool:
    return trainer in stacks.pids or stacks.rank is not None or "sleep 600" in stacks.what


def kill_tree(root: int) -> None:
    """Nothing beside it: the session's own servers are below this process too."""
    for pid in [root, *descendants(root)]:
        send(pid, signal.SIGKILL)


def text(stacks: list[Stacks]) -> str:
    return "\n".join(line for one in stacks for line in (one.title, *one.lines))


def test_a_library_call_that_holds_the_interpreter_is_seen_through(tmp_path: Path) -> None:
    code = (
        "def stuck():\n    open('ready', 'w').close()\n    ctypes.PyDLL(None).sleep(600)  # with the lock held\nstuck()"
    )
    found = silent(tmp_path, code, lambda found, _: "in stuck" in text(found), rank="3")
    [rank] = found
    assert (rank.rank, rank.what) == (3, "rank 3")
    assert any('train.py", line' in line and "in stuck" in line for line in rank.lines)


ROWS = """
class Rows(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        time.sleep(600)
def wait():
    loader = iter(DataLoader(Rows(), num_workers=3))
    helper = subprocess.Popen(["sleep", "600"])
    open("ready", "w").close()
    next(loader)
wait()
"""


def test_data_loaders_answer_too_and_stand_together_and_other_programs_live_on(tmp_path: Path) -> None:
    def all_wait(found: list[Stacks], _: int) -> bool:
        said = text(found)
        waits = ("in _next_data", "in __getitem__", "its state is S (sleeping)")
        return any(len(one.pids) == 3 for one in found) and all(what in said for what in waits)

    found = silent(tmp_path, ROWS, all_wait)
    rank, loaders, other = found
    assert (rank.rank, rank.what) == (0, "rank 0")
    assert "in _next_data" in text([rank])
    assert (loaders.rank, loaders.what, len(loaders.pids)) == (0, "a helper of rank 0", 3)
    assert "in __getitem__" in text([loaders])
    assert (other.rank, other.what) == (None, "sleep 600")
    assert "its state is S (sleeping)" in text([other])


def test_the_scripts_own_signal_handlers_are_left_alone(tmp_path: Path) -> None:
    code = (
        "for sign in (signal.SIGUSR1, signal.SIGUSR2):\n"
        "    signal.signal(sign, lambda *_: os._exit(9))\n"
        "open('ready', 'w').close()\n"
        "time.sleep(600)"
    )
    found = silent(tmp_path, code, lambda found, _: "train.py" in text(found))
    again = text(found)
    assert "rank 0" in again


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("open('ready', 'w').close(); os.kill(os.getpid(), signal.SIGSTOP)", "no answer: its state is T (stopped)"),
        (
            "os.closerange(3, 100); own = [open('own.txt', 'w') for _ in range(20)]\n"
            "open('ready', 'w').close(); time.sleep(600)",
            "its state is S (sleeping)",
        ),
        (
            "signal.signal(signal.SIGRTMAX, signal.SIG_IGN)\nopen('ready', 'w').close(); time.sleep(600)",
            "its state is S (sleeping)",
        ),
    ],
)
def test_one_that_does_not_answer_is_described_and_costs_nothing_else(tmp_path: Path, code: str, says: str) -> None:
    found = silent(tmp_path, code, lambda found, pid: says in text([one for one in found if pid in one.pids]))
    assert found
    assert not (tmp_path / "attempt/own.txt").exists() or (tmp_path / "attempt/own.txt").read_text() == ""


def test_nobody_below_is_nothing(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with left, right:
        pid = os.fork()
        if pid == 0:
            left.close()
            right.recv(1)
            os._exit(0)
        try:
            assert collect(pid, tmp_path) == []
        finally:
            left.close()
            os.waitpid(pid, 0)
