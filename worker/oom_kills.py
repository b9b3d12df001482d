"""Whether the kernel killed a process because memory ran out: its counters, watched, and its log where it is open."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from worker.process_tree import pid_namespace

# Between a death and the question the tree is ended and its pipes are read.
RECENT_S = 15.0
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # include/linux/proc_ns.h: PROC_PID_INIT_INO
_KILLED = re.compile(r"^\d+,\d+,(\d+),[^;]*;.*Killed process (\d+) \(", re.MULTILINE)


class OomKills:
    """Looks often (`look`, some microseconds), so that a kill can be matched in time with a death.

    A counter alone proves little: it counts the kills of a whole cgroup or host, and a training lasts days.
    """

    def __init__(
        self,
        proc: Path = Path("/proc"),
        cgroups: Path = Path("/sys/fs/cgroup"),
        kernel_log: Path = Path("/dev/kmsg"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = _counter(proc, cgroups)
        self._kernel_log = kernel_log
        self._clock = clock
        self._count = self._read()
        self._grew_at: float | None = None
        # The kernel stamps its log with a clock that is near this one, not the same.
        self._began_us = time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6 - 1e6

    def look(self) -> None:
        count = self._read()
        if count > self._count:
            self._count, self._grew_at = count, self._clock()

    def has_killed(self, pids: list[int]) -> bool:
        """Whether the kernel killed one of these, which have just ended by SIGKILL.

        For certain where its log can be read and names processes as we do; else whether it killed any process of this
        cgroup (or host) in the last seconds.
        """
        self.look()
        named = self._named() if pids else None
        if named is not None:
            return not named.isdisjoint(pids)
        return self._grew_at is not None and self._clock() - self._grew_at < RECENT_S

    def _read(self) -> int:
        if self._file is None:
            return 0
        try:
            found = re.search(r"^oom_kill (\d+)$", self._file.read_text(), re.MULTILINE)
        except OSError:  # the cgroup is gone
            return self._count
        return int(found[1]) if found else 0

    def _named(self) -> set[int] | None:
        """The pids that the kernel's log names since this watch began; None where it can't be read."""
        if pid_namespace() != _INITIAL_PID_NAMESPACE:
            return None
        try:
            log = os.open(self._kernel_log, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        records = []
        try:
            while block := os.read(log, 8192):  # a record each
                records.append(block.decode("utf-8", "replace"))
        except BrokenPipeError:  # overwritten while it was read: what is missing may be what was asked for
            return None
        except BlockingIOError:
            pass  # the newest has been read
        except OSError:
            return None
        finally:
            os.close(log)
        found = _KILLED.findall("\n".join(records))
        return {int(pid) for at_us, pid in found if int(at_us) >= self._began_us}


def _counter(proc: Path, cgroups: Path) -> Path | None:
    """The narrowest counter there is: this cgroup's (version 2, then 1), else the whole machine's."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    paths = {controllers: path.lstrip("/") for _, controllers, path in (line.split(":", 2) for line in lines)}
    candidates = []
    if "" in paths:
        candidates += [cgroups / paths[""] / "memory.events", cgroups / "memory.events"]
    version_1 = next((path for names, path in paths.items() if "memory" in names.split(",")), None)
    if version_1:
        candidates.append(cgroups / "memory" / version_1 / "memory.oom_control")
    candidates.append(proc / "vmstat")
    return next((file for file in candidates if _has_count(file)), None)


def _has_count(file: Path) -> bool:
    try:
        return re.search(r"^oom_kill \d+$", file.read_text(), re.MULTILINE) is not None
    except OSError:
        return False
