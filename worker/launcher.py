"""The launcher: starts one attempt's trainers and holds the kill switch of their process tree.

A process of its own that never computes: whatever a trainer does to the interpreter lock, this one answers. It ends
the whole tree when the lifeline to the supervisor closes, the licence runs out or a trainer fails, and says how.
Standard library only, so that it is there within milliseconds; the fork server runs it in a child of its own.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from shared.processes import adopt_orphans, dies_with_parent, name_process, show_memory, wake_when_parent_ends
from worker.process_tree import boottime_s, descendants, kill_descendants, reap_children, send
from worker.spare import Spare, Waiting, fork_spare

STUCK_AFTER_S = 60.0
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MAX_PACKET = 4096


@dataclass(frozen=True, slots=True)
class Order:
    """What to start: one trainer for each pair of `streams` (stdout, stderr), the first of them as `first_rank`.

    `ranked`: each is told its rank, by the names that torchrun uses.
    """

    lifeline: int
    streams: Sequence[tuple[int, int]]
    licence: float
    cwd: str
    argv: Sequence[str]
    first_rank: int = 0
    ranked: bool = False

    @classmethod
    def from_request(cls, request: dict[str, Any], descriptors: Sequence[int]) -> "Order":
        """`descriptors`: lifeline, then stdout and stderr of each trainer. Raises KeyError, TypeError, ValueError."""
        lifeline, *ends = descriptors
        return cls(
            lifeline,
            list(zip(ends[::2], ends[1::2], strict=True)),
            float(request["licence"]),
            str(request["cwd"]),
            [str(word) for word in request["argv"]],
            int(request["first_rank"]),
            bool(request["ranked"]),
        )


Become: TypeAlias = Callable[[Order], None]
# Has a trainer that waits take the streams (stdout, stderr), and says its pid; 0: there is none.
TakeSpare: TypeAlias = Callable[[tuple[int, int]], int]


class Launcher:
    """One attempt's kill switch. `lifeline`: SEQPACKET socket to the supervisor, JSON packets both ways.

    In: `{"licence": <CLOCK_BOOTTIME seconds>}`, `{"signal": "SIGTERM"}` (to every trainer), `{"kill": true}`.
    Out: `{"trainers": [pid, …]}`, `{"exit": code, "rank": r, "cut": why}` (negative: signal) once the last process is
    gone: 0, or the code of the first trainer that failed and its rank, with the reason if this launcher ended it
    (`licence`, `orphaned`, `ordered`); `{"stuck": true}` when one won't die within 60 s of SIGKILL.
    """

    def __init__(self, lifeline: socket.socket, licence_until: float) -> None:
        self._lifeline = lifeline
        self._licence_until = licence_until
        self._trainers: dict[int, int] = {}
        self._exit: int | None = None
        self._rank = 0
        self._asked_to_stop = False
        self._cut: str | None = None

    def run(self, order: Order, become: Become, take_spare: TakeSpare | None = None) -> int:
        """`become`: what a forked trainer does; it never returns."""
        adopt_orphans()
        if self._is_orphaned():  # the supervisor gave up on this start, and may have given its job back
            return 1
        if self._has_run_out():  # while the start waited; by now somebody else may train the job
            self._cut = "licence"
        else:
            self._start_trainers(order, become, take_spare)
        for descriptor in (end for streams in order.streams for end in streams):
            os.close(descriptor)
        self._say({"trainers": list(self._trainers)})
        while self._goes_on():
            self._wait()
            self._collect()
        # Also after an orderly exit: what a trainer left behind (data loaders, forked daemons) goes with it.
        self._end_tree()
        self._say({"exit": self._exit, "rank": self._rank, "cut": self._cut})
        return 0

    def _start_trainers(self, order: Order, become: Become, take_spare: TakeSpare | None) -> None:
        for local, streams in enumerate(order.streams):
            rank = order.first_rank + local
            pid = take_spare(streams) if take_spare is not None and local == 0 else 0
            self._trainers[pid or _start(order, become, local, streams, self._lifeline)] = rank

    def _is_orphaned(self) -> bool:
        try:
            return self._lifeline.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _goes_on(self) -> bool:
        if self._cut is not None or not self._trainers:
            return False
        # One that failed takes the others along, which would wait for it in their next collective call; unless all
        # were asked to stop: then each ends in its own time, and rank 0 may still be writing the checkpoint.
        return self._asked_to_stop or not self._exit

    def _wait(self) -> None:
        """Until something happens: a packet, a trainer's end, the licence's end; at most a second."""
        left_s = self._licence_until - boottime_s()
        if self._has_run_out():
            self._cut = "licence"
            return
        watched: list[int] = []
        try:
            watched += (os.pidfd_open(pid) for pid in self._trainers)
            readable, _, _ = select.select([self._lifeline.fileno(), *watched], [], [], max(0.0, min(left_s, 1.0)))
        except ProcessLookupError:
            return
        finally:
            for descriptor in watched:
                os.close(descriptor)
        if self._lifeline.fileno() in readable:
            self._obey()

    def _has_run_out(self) -> bool:
        """The licence; and nothing waits unread: a launcher that was itself frozen may find its renewals there."""
        return boottime_s() >= self._licence_until and not select.select([self._lifeline], [], [], 0)[0]

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
            self._asked_to_stop |= order["signal"] == "SIGTERM"
            for pid in self._trainers:
                send(pid, signal.Signals[order["signal"]])
        if order.get("kill"):
            self._cut = "ordered"

    def _collect(self) -> None:
        for pid, status in reap_children():
            if pid not in self._trainers:
                continue
            rank, code = self._trainers.pop(pid), os.waitstatus_to_exitcode(status)
            if not self._exit:  # none has ended yet, or all well
                self._exit, self._rank = code, rank if code else 0

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


def _start(order: Order, become: Become, local: int, streams: tuple[int, int], lifeline: socket.socket) -> int:
    """Forks one trainer: own session, default signals, ended by the kernel when this process ends."""
    prepare = dies_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
        return pid
    try:
        prepare()
        lifeline.close()
    except BaseException as error:
        _give_up(error)
    enter(order, local, streams)
    become(order)
    raise AssertionError("a trainer goes no further")


def fork_spare_trainer() -> Spare | Waiting:
    """A trainer that waits for its order; the child shall `enter` when it has it. Raises OSError.

    While it waits it ignores what its parent ignores: a signal that somebody sends it is none for the job to come.
    """
    prepare = dies_with_parent()
    forked = fork_spare()
    if isinstance(forked, Waiting):
        prepare()
    return forked


def enter(order: Order, local: int, streams: tuple[int, int]) -> None:
    """Makes this forked process, in which signals are blocked, one in which a trainer can begin.

    A stop that came between the fork and here would have been ignored as the launcher ignores it: it has waited until
    this process has the default, and ends it now.
    """
    try:
        show_memory()  # or this process's own files in /proc would be root's
        os.setsid()
        for sign in (*IGNORED, signal.SIGPIPE, signal.SIGQUIT):
            signal.signal(sign, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
        _prefer_as_oom_victim()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(order.cwd)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (streams[0], 1), (streams[1], 2)):
            os.dup2(source, target)
        os.closerange(3, 65536)
        if order.ranked:
            rank = str(order.first_rank + local)
            os.environ.update(RANK=rank, ROLE_RANK=rank, LOCAL_RANK=str(local))
    except BaseException as error:
        _give_up(error)


def execute(order: Order) -> None:
    """The trainer as a new program."""
    try:
        os.execv(order.argv[0], list(order.argv))
    except OSError as error:
        _give_up(error)


def _give_up(error: BaseException) -> NoReturn:
    os.write(2, f"the trainer could not be started: {error}\n".encode())
    os._exit(127)


def _prefer_as_oom_victim() -> None:
    """When host memory runs out the kernel should end the training, not the platform around it."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def launch(order: Order, become: Become, take_spare: TakeSpare | None = None) -> int:
    """In a process of its own, to the end of what it starts."""
    name_process("ec-launcher")
    # A terminal's Ctrl-C or a group's SIGTERM is for the worker to answer; this process ends with its lifeline.
    for sign in IGNORED:
        signal.signal(sign, signal.SIG_IGN)
    os.setsid()
    # Frozen, it is the agent's to end. Where that dies too (a killed worker), nobody would be left to end the trainer.
    wake_when_parent_ends()
    lifeline = socket.socket(fileno=order.lifeline)
    os.set_inheritable(order.lifeline, False)
    return Launcher(lifeline, order.licence).run(order, become, take_spare)


def main(arguments: list[str]) -> int:
    """`request descriptor…`: the request as JSON, as the agent got it."""
    request, *descriptors = arguments
    return launch(Order.from_request(json.loads(request), [int(number) for number in descriptors]), execute)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
