"""Process trees by /proc: who descends from whom, and ending them all (standard library only, for the launcher)."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path


def boottime_s() -> float:
    """Seconds since boot, suspend included: the clock of every local deadline."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None when there is no such process (or only its zombie)."""
    found = _stat(pid)
    return None if found is None or found[0] in "ZX" else found[2]


def is_alive(pid: int, started: int) -> bool:
    """Whether exactly this process (not a later one of the same number) is alive."""
    return start_time(pid) == started


def descendants(root: int) -> list[int]:
    """Living processes below `root` (children, their children, …), parents first; zombies count as gone."""
    children = _children()
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def subtrees_except(root: int, kept: set[int]) -> list[int]:
    """Living children of `root` that are not in `kept`, and all below those: from one look at /proc."""
    children = _children()
    waiting = [pid for pid in children.get(root, []) if pid not in kept]
    found: list[int] = []
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def is_descendant(pid: int, root: int) -> bool:
    """Whether `pid` is `root` or below it."""
    while pid > 1:
        if pid == root:
            return True
        found = _stat(pid)
        if found is None:
            return False
        pid = found[1]
    return False


def send(pid: int, sign: signal.Signals) -> None:
    """Signals a process that may be gone already."""
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        return


def kill_descendants(root: int) -> int:
    """SIGKILLs everything below `root` once. Returns how many there were: call again until it is 0."""
    found = descendants(root)
    for pid in found:
        send(pid, signal.SIGKILL)
    return len(found)


def kill_tree(pid: int, started: int) -> None:
    """SIGKILLs a process and everything below it, top first so that it starts nothing new."""
    if not is_alive(pid, started):
        return
    # Stopped first: a process that is about to fork must not get a child past the listing.
    send(pid, signal.SIGSTOP)
    below = descendants(pid)
    send(pid, signal.SIGKILL)
    for child in below:
        send(child, signal.SIGKILL)


def reap_children() -> list[tuple[int, int]]:
    """Collects every ended child: pairs of pid and wait status."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, status))


def _children() -> dict[int, list[int]]:
    """Parent to living children: one look at /proc; zombies count as gone."""
    children: dict[int, list[int]] = {}
    for pid, state, parent in _everyone():
        if state not in "ZX":
            children.setdefault(parent, []).append(pid)
    return children


def _everyone() -> Iterator[tuple[int, str, int]]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            found = _stat(int(name))
            if found is not None:
                yield int(name), found[0], found[1]


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent and start time (ticks) of a process."""
    try:
        # Twice a second for each process of the host: 8 µs, with Path.read_bytes 16 (2026-11-29).
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read()
    except OSError:
        return None
    # The command name stands in parentheses and may hold anything, parentheses too.
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0].decode(), int(fields[1]), int(fields[19])
