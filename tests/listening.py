"""Plays the supervisor of one attempt: listens at its socket, keeps the packets, starts trainers and scripts."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import warm
from tests.waiting import wait_until
from worker.unix_address import bind_at, connect_at

CHECKOUT = Path(__file__).parents[1]


@dataclass
class Attempt:
    """What a trainer of this attempt is told, and what it said (`packets`, in order)."""

    folder: Path
    job: dict[str, Any]
    packets: list[dict[str, Any]] = field(default_factory=list)
    listener: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    connections: list[socket.socket] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"EPOCHCAST_SOCKET": str(self.folder / "socket"), "EPOCHCAST_JOB": str(self.folder / "job.json")}

    @property
    def out(self) -> Path:
        return Path(self.job["out_dir"])

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [packet for packet in self.packets if packet["type"] == kind]

    def checkpoints(self) -> list[dict[str, Any]]:
        """The saved ones as the next attempt is told them, newest first."""
        saved = reversed(self.said("checkpoint"))
        return [{"file": str(self.out / one["file"]), "epoch": one["epoch"], "step": one["step"]} for one in saved]

    def sharded_checkpoints(self) -> list[dict[str, Any]]:
        """The same of those that all ranks have written in parts."""
        parts = [one for one in reversed(self.said("shard")) if one["rank"] == 0]
        return [
            {"file": str(self.out / one["checkpoint"]), "epoch": one["epoch"], "step": one["step"]} for one in parts
        ]

    def start(self, *arguments: str, checkout: Path = CHECKOUT, **environment: str) -> subprocess.Popen[str]:
        """`python …` in the attempt's folder, with the environment that a supervisor gives a trainer."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self._told(checkout, environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start_warm(self, *arguments: str, **environment: str) -> warm.Forked:
        """The same, forked from a process that has torch loaded."""
        return warm.start(arguments, self.folder, self._told(CHECKOUT, environment))

    def _told(self, checkout: Path, more: dict[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {**kept, "PYTHONPATH": str(checkout), **warm.FIXED, **self.environment, **more}

    def train(self, checkout: Path | None = None) -> tuple[int, str]:
        """Exit code and output of a whole `python -m worker.trainer`; of a cold one for another checkout."""
        trainer = ("-m", "worker.trainer")
        process = self.start_warm(*trainer) if checkout is None else self.start(*trainer, checkout=checkout)
        return finished(process)

    def settle(self) -> None:
        """Until everything that an ended process said has been read."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as last:
            # An ended process's connection may still wait to be accepted; once this later one is closed, it was.
            connect_at(last, self.folder / "socket")
            last.shutdown(socket.SHUT_WR)
            last.recv(1)
        wait_until(lambda: all(connection.fileno() == -1 for connection in self.connections), "the end of the packets")

    def hang_up(self) -> None:
        """The supervisor dies: nobody listens, nobody is connected."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        wait_until(lambda: self.connections or not self.packets, "the connection")
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def finished(process: subprocess.Popen[str] | warm.Forked, timeout_s: float = 300) -> tuple[int, str]:
    output, _ = process.communicate(timeout=timeout_s)
    return process.wait(), output


@contextmanager
def listening(folder: Path, **told: Any) -> Iterator[Attempt]:
    """An attempt in `folder` whose job file says `told` over the defaults below."""
    defaults: dict[str, Any] = {
        "job_id": 42, "attempt": 1, "name": "test", "recipe": None, "params": {}, "total_epochs": 3, "seed": 0,
        "threads": 1, "checkpoints": [], "out_dir": str(folder / "out"),
    }  # fmt: skip
    attempt = Attempt(folder, {**defaults, **told})
    attempt.out.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(attempt.job))
    bind_at(attempt.listener, folder / "socket")
    attempt.listener.listen()
    threading.Thread(target=_accept, args=(attempt,), daemon=True).start()
    try:
        yield attempt
    finally:
        attempt.hang_up()


def _accept(attempt: Attempt) -> None:
    while True:
        try:
            connection, _ = attempt.listener.accept()
        except OSError:
            return
        attempt.connections.append(connection)
        threading.Thread(target=_drain, args=(attempt, connection), daemon=True).start()


def _drain(attempt: Attempt, connection: socket.socket) -> None:
    with connection:
        while packet := connection.recv(64 * 1024):
            attempt.packets.append(json.loads(packet))
