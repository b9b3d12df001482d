"""Child processes that end with their parent, whatever ends it (Linux)."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable

# Loaded here and not in the forked child, where another thread may have held the loader's lock.
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
_PR_SET_NAME = 15


def dies_with_parent(sign: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """A `preexec_fn`: the child gets `sign` when the *thread* that creates it ends, so create it in the main thread."""
    parent = os.getpid()

    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(sign), 0, 0, 0)
        if os.getppid() != parent:  # the parent died between fork and prctl
            os._exit(1)

    return prepare


def end_with_parent(sign: signal.Signals = signal.SIGKILL) -> None:
    """Like `dies_with_parent`, for a process that was forked already by its parent's main thread."""
    _prctl(_PR_SET_PDEATHSIG, int(sign))


def wake_when_parent_ends() -> None:
    """Has the kernel send SIGCONT whenever this process's parent ends, also the one that it is given then: a process
    that was frozen wakes and can look for itself. One that runs doesn't notice. Children inherit nothing of it."""
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT))


def hide_memory() -> None:
    """Keeps other processes of the same user from reading this one's memory and environment (PR_SET_DUMPABLE = 0)."""
    _prctl(_PR_SET_DUMPABLE, 0)


def show_memory() -> None:
    """Takes back what `hide_memory` did, also in a parent before a fork."""
    _prctl(_PR_SET_DUMPABLE, 1)


def adopt_orphans() -> None:
    """Makes orphaned descendants children of this process instead of init's, so that it can find and end them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def name_process(name: str) -> None:
    """What `ps` and `top` call this process (15 bytes): a forked one is else called as what it was forked from."""
    _LIBC.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def end(process: subprocess.Popen[bytes], grace_s: float) -> int:
    """SIGTERM, then after `grace_s` SIGKILL; returns the exit code (negative: the signal)."""
    process.terminate()
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")
