"""An attempt's process tree as its supervisor holds it: start, licence, signals, the end."""

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from worker.agent_line import AgentLine, AgentUnavailable
from worker.process_tree import is_alive

_MAX_PACKET = 4096


class Tree:
    """Lifeline to the launcher, line to the agent, and the read ends of the trainer's stdout and stderr."""

    def __init__(self, work_dir: Path, job_id: int) -> None:
        self._job_id = job_id
        self._work_dir = work_dir
        self.agent = AgentLine(work_dir)
        self.lifeline, self._launcher_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Orders must never block their sender, whatever the launcher does.
        self.lifeline.setblocking(False)
        self.stdout, self._stdout_end = os.pipe()
        self.stderr, self._stderr_end = os.pipe()
        self._far_ends = contextlib.ExitStack()
        self._far_ends.callback(self._launcher_end.close)
        for near, far in ((self.stdout, self._stdout_end), (self.stderr, self._stderr_end)):
            os.set_blocking(near, False)
            self._far_ends.callback(os.close, far)
        self.launcher, self.started = 0, 0
        self.trainers: list[int] = []
        self.licence_until = 0.0
        self.exit_code: int | None = None
        self.is_gone = False
        self.cut_by_licence = False
        self.is_stuck = False

    def start(self, argv: list[str], cwd: Path, env: dict[str, str], licence_until: float, timeout_s: float) -> None:
        """Has the agent start the launcher. Raises AgentUnavailable."""
        self.licence_until = max(self.licence_until, licence_until)
        licence_until = self.licence_until
        request = {"job_id": self._job_id, "cwd": str(cwd), "env": env, "argv": argv, "licence": licence_until}
        ends = [self._launcher_end.fileno(), self._stdout_end, self._stderr_end]
        try:
            self.agent.connect(timeout_s)
            self.launcher, self.started = self.agent.start(request, ends, timeout_s)
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
        """SIGTERM to the trainer's top process: it checkpoints and ends."""
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
            except OSError:
                return False
            if not data:
                return False
            packet = json.loads(data)
            if "trainer" in packet:
                self.trainers = [packet["trainer"]]
            if "exit" in packet:
                self.exit_code, self.is_gone = packet["exit"], True
                self.cut_by_licence = packet["cut"] == "licence"
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
        for descriptor in (self.stdout, self.stderr):
            os.close(descriptor)
