"""The agent's socket: starts launchers for supervisors, passes word to them, and ends trees whose supervisor is gone.

The second kill switch: should a launcher be frozen or dead, this one ends its tree by the same licence.
"""

import json
import os
import selectors
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from worker.process_tree import (
    boottime_s,
    is_alive,
    is_descendant,
    kill_tree,
    reap_children,
    send,
    start_time,
    subtrees_except,
)
from worker.starting import Start, Starter
from worker.unix_address import agent_socket, bind_at, peer_pid

logger = structlog.get_logger(__name__)

# How soon a start that waits for the fork server is looked at again.
WAITING_S = 0.05
# The launcher ends its tree within milliseconds of losing its supervisor; this is how long it alone is trusted to.
LAUNCHER_FIRST_S = 0.5
_MAX_PACKET = 256 * 1024
# What the kernel lets one packet carry (SCM_MAX_FD).
_MAX_DESCRIPTORS = 253


@dataclass(eq=False, slots=True)
class Ward:
    """One attempt under guard: its supervisor's connection and its launcher."""

    connection: socket.socket
    job_id: int = 0
    launcher: int = 0
    started: int = 0
    licence_until: float = float("inf")
    orphaned_at: float | None = None
    ordered_killed: bool = False
    told_gone: bool = False


class Guard:
    """Serves supervisors of this host. Packets are JSON; `start` brings descriptors: lifeline, then stdout and stderr
    of each trainer.

    In: `start` (job_id, cwd, env, argv, licence, first_rank, ranked, warm), `adopt` (job_id, launcher, started,
    licence), `licence`, `kill`. Out: `{"launcher": pid, "started": ticks}` or `{"refused": why}`; later
    `{"nudge": true}`, `{"drain": true}`, and `{"gone": true}` once the launcher and all that lost it are gone.
    """

    def __init__(self, work_dir: Path, starter: Starter) -> None:
        self._starter = starter
        self._waiting: list[tuple[Ward, Start]] = []
        self._path = agent_socket(work_dir)
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        bind_at(self._listener, self._path)
        self._path.chmod(0o600)
        self._listener.listen(128)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wards: list[Ward] = []
        self._lock = threading.Lock()
        self._draining = False

    @property
    def wards(self) -> int:
        """How many attempts are under guard."""
        with self._lock:
            return len(self._wards)

    def run_once(self, timeout_s: float = 0.5) -> None:
        """Serves what is waiting, then ends what must not go on."""
        for key, _ in self._selector.select(min(timeout_s, WAITING_S) if self._waiting else timeout_s):
            if key.fileobj is self._listener:
                self._accept()
            else:
                self._serve(key.data)
        self._starter.watch()
        self._start_waiting()
        self._enforce()
        self._reap()

    def nudge(self, job_id: int) -> None:
        """A stop was asked for this job: its supervisor looks at once. Callable from any thread."""
        self._tell({"nudge": True}, job_id)

    def drain(self) -> None:
        """The worker is shutting down: every supervisor checkpoints and gives its job back."""
        self._draining = True
        self._tell({"drain": True}, None)

    def close(self) -> None:
        self._starter.close()
        for _, start in self._waiting:
            start.close()
        self._selector.close()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _tell(self, packet: dict[str, Any], job_id: int | None) -> None:
        with self._lock:
            wards = [ward for ward in self._wards if job_id is None or ward.job_id == job_id]
        for ward in wards:
            _send(ward.connection, packet)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # no descriptors left, or the peer is gone already
            logger.warning("agent: a connection was not accepted", error=str(error))
            return
        if self._is_below_a_launcher(peer_pid(connection)):
            logger.warning("agent: refused a training process that connected")
            connection.close()
            return
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, Ward(connection))

    def _is_below_a_launcher(self, pid: int) -> bool:
        with self._lock:
            launchers = [ward.launcher for ward in self._wards]
        return any(is_descendant(pid, launcher) for launcher in launchers)

    def _serve(self, ward: Ward) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(ward.connection, _MAX_PACKET, _MAX_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            packet, descriptors = b"", []
        try:
            if packet:
                self._obey(ward, json.loads(packet), descriptors)
            else:
                self._lose_supervisor(ward)
        except (ValueError, TypeError, KeyError, OSError) as error:
            logger.error("agent: an unreadable order; its connection is closed", error=repr(error))
            self._lose_supervisor(ward)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _obey(self, ward: Ward, order: dict[str, Any], descriptors: list[int]) -> None:
        match order:
            case {"start": _} if len(descriptors) < 3 or self._draining:
                reason = "this worker is shutting down" if self._draining else "three descriptors are needed at least"
                _send(ward.connection, {"refused": reason, "draining": self._draining})
            case {"start": request}:
                ward.job_id, ward.licence_until = int(request["job_id"]), float(request["licence"])
                self._waiting.append((ward, Start.of(request, descriptors)))
            case {"adopt": request}:
                self._adopt(ward, request)
            case {"licence": until} if not ward.ordered_killed:
                ward.licence_until = max(ward.licence_until, float(until))
            case {"kill": True}:
                # The launcher got the same order and is given its moment; a frozen one changes nothing.
                ward.ordered_killed, ward.licence_until = True, boottime_s()

    def _start_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for ward, start in waiting:
            if ward.orphaned_at is None and not self._draining and self._starter.must_wait(start):
                self._waiting.append((ward, start))
                continue
            try:
                if ward.orphaned_at is None:
                    self._start(ward, start)
            finally:
                start.close()

    def _start(self, ward: Ward, start: Start) -> None:
        if self._draining:
            _send(ward.connection, {"refused": "this worker is shutting down", "draining": True})
            return
        try:
            launcher = self._starter.start(start, self._launchers())
        except OSError as error:
            _send(ward.connection, {"refused": f"the launcher could not be started: {error}"})
            return
        ward.launcher, ward.started = launcher, start_time(launcher) or 0
        # The answer first: from here on other threads may tell this supervisor something.
        _send(ward.connection, {"launcher": ward.launcher, "started": ward.started})
        with self._lock:
            self._wards.append(ward)

    def _launchers(self) -> set[int]:
        """Those that live."""
        with self._lock:
            wards = list(self._wards)
        return {ward.launcher for ward in wards if is_alive(ward.launcher, ward.started)}

    def _adopt(self, ward: Ward, request: dict[str, Any]) -> None:
        """A supervisor whose agent died comes to the new one, so that its tree has two kill switches again."""
        ward.job_id, ward.launcher = int(request["job_id"]), int(request["launcher"])
        ward.started, ward.licence_until = int(request["started"]), float(request["licence"])
        with self._lock:
            self._wards.append(ward)
        if self._draining:
            _send(ward.connection, {"drain": True})

    def _lose_supervisor(self, ward: Ward) -> None:
        self._selector.unregister(ward.connection)
        ward.connection.close()
        ward.orphaned_at = boottime_s()
        if ward.launcher == 0:
            return
        if not is_alive(ward.launcher, ward.started):
            self._forget(ward)

    def _forget(self, ward: Ward) -> None:
        with self._lock:
            if ward in self._wards:
                self._wards.remove(ward)

    def _enforce(self) -> None:
        now = boottime_s()
        with self._lock:
            wards = list(self._wards)
        for ward in wards:
            alive = is_alive(ward.launcher, ward.started)
            if ward.orphaned_at is not None and not alive:
                self._forget(ward)
                continue
            orphaned = ward.orphaned_at is not None and now - ward.orphaned_at > LAUNCHER_FIRST_S
            # A moment after the launcher's own deadline: it says how the trainer ended, this one only ends it.
            expired = now > ward.licence_until + LAUNCHER_FIRST_S
            if alive and (orphaned or expired):
                logger.warning("agent ends a tree", job_id=ward.job_id, reason="orphaned" if orphaned else "licence")
                kill_tree(ward.launcher, ward.started)

    def _reap(self) -> None:
        """Collects ended launchers; any other child of ours lost its launcher and goes with all it started."""
        reap_children()
        with self._lock:
            wards = list(self._wards)
        launchers = self._launchers()
        # Only our own children can be strays: what a live launcher's processes fork stays below that launcher. One look
        # at /proc, because between two a healthy new process would show as a stray.
        strays = subtrees_except(os.getpid(), launchers | self._starter.own_processes)
        for pid in strays:
            send(pid, signal.SIGKILL)
        if strays:
            return
        for ward in wards:
            if ward.launcher not in launchers and not ward.told_gone and ward.orphaned_at is None:
                ward.told_gone = True
                _send(ward.connection, {"gone": True})


def _send(connection: socket.socket, packet: dict[str, Any]) -> None:
    try:
        connection.send(json.dumps(packet).encode())
    except OSError as error:
        # A supervisor that is gone shows as EOF on its connection; one that is stuck finds the flag in its heartbeat.
        logger.debug("a supervisor could not be told", error=str(error))
