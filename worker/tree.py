"""An attempt's process tree as its supervisor holds it: start, licence, signals, the end."""

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from worker.agent_line import AgentLine, AgentUnavailable
from worker.process_tree import is_alive
from worker.ranks import Ranks

_MAX_PACKET = 4096


class Tree:
    """Lifeline to the launcher, line to the agent, and the read ends of each trainer's stdout and stderr."""

    def __init__(self, work_dir: Path, job_id: int, ranks: Ranks) -> None:
        self._job_id = job_id
        self._work_dir = work_dir
        self._ranks = ranks
        self.agent = AgentLine(work_dir)
        self.lifeline, self._launcher_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Orders must never block their sender, whatever the launcher does.
        self.lifeline.setblocking(False)
        self._far_ends = contextlib.ExitStack()
        self._far_ends.callback(self._launcher_end.close)
        self._near_ends = contextlib.ExitStack()
        self._stream_ends: list[int] = []
        self.streams: list[tuple[int, int]] = [(self._pipe(), self._pipe()) for _ in range(ranks.local)]
        self.launcher, self.started = 0, 0
        self.trainers: list[int] = []
        self.licence_until = 0.0
        self.exit_code: int | None = None
        self.exit_rank = 0
        self.is_gone = False
        self.cut_by_licence = False
        self.ended_by_itself = False
        self.is_stuck = False

    def _pipe(self) -> int:
        """The read end of a new pipe, whose write end goes to the launcher."""
        near, far = os.pipe()
        self._near_ends.callback(os.close, near)
        self._far_ends.callback(os.close, far)
        os.set_blocking(near, False)
        self._stream_ends.append(far)
        return near

    def start(
        self,
        argv: list[str],
        cwd: Path,
        env: dict[str, str],
        licence_until: float,
        timeout_s: float,
        *,
        warm: bool,
    ) -> None:
        """Has the agent start the launcher; `warm`: forked, if the host can. Raises AgentUnavailable."""
        self.licence_until = max(self.licence_until, licence_until)
        request = {
            "job_id": self._job_id,
            "cwd": str(cwd),
            "env": env,
            "argv": argv,
            "licence": self.licence_until,
            "first_rank": self._ranks.first,
            "ranked": self._ranks.ranked,
            "warm": warm,
        }
        ends = [self._launcher_end.fileno(), *self._stream_ends]
        try:
            self.agent.connect(timeout_s)
            self.launcher, self.started = self.agent.start(request, ends, timeout_s)
        except BaseException:
            # The agent may still start it, late: a launcher without a lifeline starts nothing and ends.
            self.lifeline.close()
            self.agent.close()
            raise
        finally:
            self._far_ends.close()
        # A renewal that came while the launcher was started: the lifeline had it, the agent not.
        self.agent.tell({"licence": self.licence_until})

    def renew(self, licence_until: float) -> None:
        """Passes a longer licence to both kill switches. Callable from any thread."""
        self.licence_until = licence_until
        self._order({"licence": licence_until})
        self.agent.tell({"licence": licence_until})

    def ask_to_stop(self) -> None:
        """SIGTERM to every trainer: they checkpoint and end."""
        self._order({"signal": "SIGTERM"})

    def kill(self) -> None:
        """SIGKILL to everything; `exit_code` or `is_gone` tell when nothing is left."""
        self._order({"kill": True})
        self.agent.tell({"kill": True})

    def _order(self, packet: dict[str, Any]) -> None:
        try:
            self.lifeline.send(json.dumps(packet).encode())
        except OSError:
            return  # a dead launcher shows as EOF on the lifeline, a frozen one is ended by the agent

    def hear_launcher(self) -> bool:
        """Reads what the launcher said. False: it is gone (with or without a last word)."""
        while True:
            try:
                data = self.lifeline.recv(_MAX_PACKET)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                # It ended with a renewal of ours unread: the kernel says so once, before what it had said last.
                continue
            except OSError:
                return False
            if not data:
                return False
            packet = json.loads(data)
            if "trainers" in packet:
                self.trainers = packet["trainers"]
            if "exit" in packet:
                self.exit_code, self.exit_rank, self.is_gone = packet["exit"], packet["rank"], True
                self.cut_by_licence = packet["cut"] == "licence"
                self.ended_by_itself = packet["cut"] is None
            if packet.get("stuck"):
                self.is_stuck = True

    @property
    def launcher_is_alive(self) -> bool:
        return self.launcher != 0 and is_alive(self.launcher, self.started)

    def find_agent_again(self, timeout_s: float) -> bool:
        """After the agent died: puts the tree under its successor's guard. False: there is none yet."""
        self.agent.close()
        try:
            self.agent.connect(timeout_s)
        except AgentUnavailable:
            return False
        self.agent.adopt(self._job_id, self.launcher, self.started, self.licence_until)
        return True

    def close(self) -> None:
        """Lets go of everything; a launcher that still lives ends its tree now."""
        self._far_ends.close()
        self.lifeline.close()
        self.agent.close()
        self._near_ends.close()
