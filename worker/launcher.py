"""The launcher: starts one attempt's trainer and holds the kill switch of its process tree.

A process of its own that never computes: whatever the trainer does to the interpreter lock, this one answers. It ends
the whole tree when the lifeline to the supervisor closes or the licence runs out, and says how the trainer ended.
Standard library only, so that it is there within milliseconds.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any

from shared.processes import adopt_orphans, dies_with_parent
from worker.process_tree import boottime_s, descendants, kill_descendants, reap_children, send

STUCK_AFTER_S = 60.0
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MAX_PACKET = 4096


class Launcher:
    """One attempt's kill switch. `lifeline`: SEQPACKET socket to the supervisor, JSON packets both ways.

    In: `{"licence": <CLOCK_BOOTTIME seconds>}`, `{"signal": "SIGTERM"}`, `{"kill": true}`.
    Out: `{"trainer": pid}`, `{"exit": code, "cut": why}` (negative: signal) once the last process is gone, with the
    reason if this launcher ended it (`licence`, `orphaned`, `ordered`); `{"stuck": true}` when one won't die within
    60 s of SIGKILL.
    """

    def __init__(self, lifeline: socket.socket, licence_until: float) -> None:
        self._lifeline = lifeline
        self._licence_until = licence_until
        self._trainer = 0
        self._exit: int | None = None
        self._cut: str | None = None

    def run(self, argv: list[str], cwd: str, stdout: int, stderr: int) -> int:
        adopt_orphans()
        self._trainer = _start(argv, cwd, stdout, stderr)
        os.close(stdout)
        os.close(stderr)
        self._say({"trainer": self._trainer})
        while self._exit is None and self._cut is None:
            self._wait()
            self._collect()
        # Also after an orderly exit: what the trainer left behind (data loaders, forked daemons) goes with it.
        self._end_tree()
        self._say({"exit": self._exit, "cut": self._cut})
        return 0

    def _wait(self) -> None:
        """Until something happens: a packet, the trainer's end, the licence's end; at most a second."""
        left_s = self._licence_until - boottime_s()
        if left_s <= 0 and not select.select([self._lifeline], [], [], 0)[0]:
            # Nothing waits unread: a launcher that was itself frozen may find its renewals here.
            self._cut = "licence"
            return
        try:
            watched = os.pidfd_open(self._trainer)
        except ProcessLookupError:
            return
        try:
            readable, _, _ = select.select([self._lifeline.fileno(), watched], [], [], max(0.0, min(left_s, 1.0)))
        finally:
            os.close(watched)
        if self._lifeline.fileno() in readable:
            self._obey()

    def _obey(self) -> None:
        try:
            packet = self._lifeline.recv(_MAX_PACKET)
        except OSError:
            packet = b""
        if not packet:  # the supervisor is gone
            self._cut = "orphaned"
            return
        order = json.loads(packet)
        if "licence" in order:
            self._licence_until = max(self._licence_until, float(order["licence"]))
        if "signal" in order:
            send(self._trainer, signal.Signals[order["signal"]])
        if order.get("kill"):
            self._cut = "ordered"

    def _collect(self) -> None:
        for pid, status in reap_children():
            if pid == self._trainer:
                self._exit = os.waitstatus_to_exitcode(status)

    def _end_tree(self) -> None:
        own = os.getpid()
        began, told = boottime_s(), False
        while kill_descendants(own) or descendants(own):
            self._collect()
            select.select([], [], [], 0.01)
            if not told and boottime_s() - began > STUCK_AFTER_S:
                told = True
                self._say({"stuck": True})
        self._collect()

    def _say(self, packet: dict[str, Any]) -> None:
        # The supervisor may be gone; then there is nobody to tell, and the tree is ended all the same.
        with contextlib.suppress(OSError):
            self._lifeline.send(json.dumps(packet).encode())


def _start(argv: list[str], cwd: str, stdout: int, stderr: int) -> int:
    """Forks and execs the trainer: own session, default signals, ended by the kernel when this process ends."""
    prepare = dies_with_parent()
    # A stop that comes between the fork and the child's own handling would be ignored as the launcher ignores it: it
    # waits until the child has the default, and ends it then.
    signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
        return pid
    try:
        prepare()
        os.setsid()
        for sign in (*IGNORED, signal.SIGPIPE):
            signal.signal(sign, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
        _prefer_as_oom_victim()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(cwd)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (stdout, 1), (stderr, 2)):
            os.dup2(source, target)
        os.closerange(3, 65536)
        os.execv(argv[0], argv)
    except BaseException as error:
        os.write(2, f"the trainer could not be started: {error}\n".encode())
    os._exit(127)


def _prefer_as_oom_victim() -> None:
    """When host memory runs out the kernel should end the training, not the platform around it."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def main(arguments: list[str]) -> int:
    """`lifeline_fd stdout_fd stderr_fd licence_until cwd argv…`"""
    lifeline_fd, stdout, stderr = (int(argument) for argument in arguments[:3])
    # A terminal's Ctrl-C or a group's SIGTERM is for the worker to answer; this process ends with its lifeline.
    for sign in IGNORED:
        signal.signal(sign, signal.SIG_IGN)
    os.setsid()
    lifeline = socket.socket(fileno=lifeline_fd)
    os.set_inheritable(lifeline_fd, False)
    return Launcher(lifeline, float(arguments[3])).run(arguments[5:], arguments[4], stdout, stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
