"""A supervisor's line to its host's agent: asks for a launcher, passes the licence on, hears of stops and drains."""

import json
import socket
import time
from pathlib import Path
from typing import Any

from worker.unix_address import agent_socket, connect_at

_MAX_PACKET = 256 * 1024
_TRY_AGAIN_S = 0.1


class AgentUnavailable(Exception):
    """Raised when the host's agent doesn't answer (it is being started again) or refuses."""


class AgentDraining(AgentUnavailable):
    """Raised when the worker is shutting down: the job goes back to the queue, and nobody is to blame."""


class AgentLine:
    """One connection; after the agent died, `connect` and `adopt` put the tree under the next agent's guard."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self.connection: socket.socket | None = None

    def connect(self, timeout_s: float) -> None:
        """Raises AgentUnavailable when there is no agent within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connect_at(connection, agent_socket(self._work_dir))
                self.connection = connection
                return
            except OSError as error:
                connection.close()
                if time.monotonic() > deadline:
                    raise AgentUnavailable(f"the host's agent does not answer: {error}") from error
                time.sleep(min(_TRY_AGAIN_S, timeout_s))

    def start(self, request: dict[str, Any], descriptors: list[int], timeout_s: float) -> tuple[int, int]:
        """Has a launcher started. Returns its pid and start time (ticks). Raises AgentUnavailable."""
        assert self.connection is not None
        self.connection.settimeout(timeout_s)
        try:
            socket.send_fds(self.connection, [json.dumps({"start": request}).encode()], descriptors)
            answer = json.loads(self.connection.recv(_MAX_PACKET) or b'{"refused": "the agent ended"}')
        except OSError as error:
            raise AgentUnavailable(f"the host's agent does not answer: {error}") from error
        if answer.get("draining"):
            raise AgentDraining(answer["refused"])
        if "launcher" not in answer:
            raise AgentUnavailable(answer.get("refused", "the host's agent gave no answer"))
        self.connection.setblocking(False)
        return int(answer["launcher"]), int(answer["started"])

    def adopt(self, job_id: int, launcher: int, started: int, licence_until: float) -> None:
        request = {"job_id": job_id, "launcher": launcher, "started": started, "licence": licence_until}
        self.tell({"adopt": request})
        if self.connection is not None:
            self.connection.setblocking(False)

    def tell(self, packet: dict[str, Any]) -> None:
        """Sends a packet; a dead agent shows as EOF on the connection."""
        if self.connection is None:
            return
        try:
            self.connection.send(json.dumps(packet).encode())
        except OSError:
            return

    def read(self) -> dict[str, Any] | None:
        """A packet that waits; `{}` for none; None when the agent is gone."""
        assert self.connection is not None
        try:
            data = self.connection.recv(_MAX_PACKET)
        except BlockingIOError:
            return {}
        except OSError:
            return None
        if not data:
            return None
        packet: dict[str, Any] = json.loads(data)
        return packet

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
