"""What every process of a silent attempt is doing: each rank and data loader answers a signal with its stacks.

faulthandler's handler is plain C: it answers while a library call holds the interpreter's lock, which no thread and no
Python signal handler does. py-spy shows the same frames without being prepared, but needs the right to ptrace, which
containers and Debian's kernels don't give to a process beside the trainer (docs/decisions.md).
"""

import faulthandler
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.process_tree import descendants

# SIGUSR1 and SIGUSR2 are the scripts' own: schedulers and Lightning use them. Nobody uses the last real-time signal.
SIGNAL = signal.SIGRTMAX
ANSWER_S, QUIET_S, ALTOGETHER_S = 1.0, 0.05, 10.0
MAX_PROCESSES = 256
MAX_LINES = 200
_MAX_BYTES = 256 * 1024
_PREFIX = "stacks-"
_THREAD = re.compile(r"0x[0-9a-f]+")


def answer(folder: Path) -> None:
    """For a trainer, before user code runs: this process and what it forks answer with their stacks, in a file.

    Not on stderr, which belongs to the script: it may be closed, and all ranks write there.
    """
    rank = os.environ.get("RANK", "0")
    path = folder / f"{_PREFIX}{rank}-{os.getpid()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    faulthandler.register(SIGNAL, file=descriptor, all_threads=True)


@dataclass(frozen=True, slots=True)
class Stacks:
    """What processes with the same stacks are doing. `rank` None: none of the trainer's own, such as a program it
    started."""

    rank: int | None
    pids: tuple[int, ...]
    what: str
    lines: tuple[str, ...]

    @property
    def title(self) -> str:
        pids = f"pid {self.pids[0]}" if len(self.pids) == 1 else f"pids {', '.join(map(str, self.pids))}"
        return f"{self.what}, {pids}:"


def collect(launcher: int, folder: Path) -> list[Stacks]:
    """The stacks of everything below the launcher, ranks first; processes that do the same stand together.

    Takes some milliseconds a process, a second for one that does not answer (stopped, in a system call that can't be
    interrupted), and 10 s at most.
    """
    deadline = time.monotonic() + ALTOGETHER_S
    found: dict[tuple[int | None, str, tuple[str, ...]], list[int]] = {}
    shown: dict[tuple[int | None, str, tuple[str, ...]], tuple[str, ...]] = {}
    for pid in descendants(launcher)[:MAX_PROCESSES]:
        file = _file_of(pid, folder)
        rank, what = _described(pid, file)
        lines = tuple(_ask(pid, file, deadline) if file is not None else _seen_from_outside(pid))
        key = (rank, what, tuple(_THREAD.sub("", line) for line in lines))
        found.setdefault(key, []).append(pid)
        shown.setdefault(key, lines)
    stacks = [Stacks(rank, tuple(pids), what, shown[key]) for key, pids in found.items() for rank, what, _ in [key]]
    return sorted(stacks, key=lambda one: (one.rank is None, one.rank or 0, one.pids[0]))


def _described(pid: int, file: Path | None) -> tuple[int | None, str]:
    if file is None:
        return None, _command(pid)
    rank, _, owner = file.name.removeprefix(_PREFIX).partition("-")
    return int(rank), f"rank {rank}" if int(owner) == pid else f"a helper of rank {rank}"


def _file_of(pid: int, folder: Path) -> Path | None:
    """Where a process would answer; None for one that would die of the signal or write elsewhere.

    It must catch the signal and still hold a stacks file: a script may have closed or replaced any of its descriptors.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
        if caught is None or not int(caught[1], 16) >> (SIGNAL - 1) & 1:
            return None
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            target = Path(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
            if target.parent == folder and re.fullmatch(rf"{_PREFIX}\d+-\d+", target.name):
                return target
    except OSError:  # it has ended, or is another user's
        return None
    return None


def _ask(pid: int, file: Path, deadline: float) -> Iterator[str]:
    """One process at a time: what is new in the file is its answer."""
    try:
        before = file.stat().st_size
        os.kill(pid, SIGNAL)
        answered = _wait_for_answer(file, before, min(deadline, time.monotonic() + ANSWER_S))
        if not answered:
            yield "no answer: " + "; ".join(_seen_from_outside(pid))
            return
        with file.open("rb") as stream:
            stream.seek(before)
            lines = stream.read(_MAX_BYTES).decode("utf-8", "replace").splitlines()
    except OSError as error:
        yield f"no answer: {error}"
        return
    yield from [line for line in lines if line.strip()][:MAX_LINES]


def _wait_for_answer(file: Path, before: int, deadline: float) -> bool:
    """Until it has grown and grows no more."""
    size, changed_at = before, time.monotonic()
    while True:
        now = time.monotonic()
        grown = file.stat().st_size
        if grown != size:
            size, changed_at = grown, now
        if size > before and now - changed_at > QUIET_S:
            return True
        if now > deadline:
            return size > before
        time.sleep(0.005)


def _seen_from_outside(pid: int) -> Iterator[str]:
    """What the kernel says of a process that can't speak for itself."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        state = re.search(r"^State:\s*(.+)$", status, re.MULTILINE)
        waits_in = Path(f"/proc/{pid}/wchan").read_text().strip()
    except OSError:
        yield "it has ended"
        return
    yield f"its state is {state[1] if state else 'unknown'}" + (f", in {waits_in}" if waits_in not in ("", "0") else "")


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        words = ""
    return words[:100] or "a process"
