"""A platform as `epochcast up` starts it, and a client that submits a script to it and watches the clock."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from websockets.sync.client import connect

import epochcast
from epochcast.packing import choose
from tests.platform import Platform

ANSWER_S = 300.0


@dataclass(frozen=True, slots=True)
class Watched:
    """One job as a subscriber saw it. Times are CLOCK_MONOTONIC seconds, which all processes of a machine share."""

    job_id: int
    submitted: float
    answered: float
    first_report: float
    """When the first epoch's `progress` was there."""
    ended: float
    metrics: dict[str, Any]
    """Of the first epoch."""
    lines: list[str]
    """What the script printed."""


class Client:
    """Submits one bundle again and again. A connection is kept open, as a client's pool would."""

    def __init__(self, platform: Platform, script: Path) -> None:
        self.platform = platform
        headers = {"Authorization": f"Bearer {platform.token}"}
        self._http = httpx2.Client(base_url=f"{platform.url}/api/v1", headers=headers, timeout=ANSWER_S)
        self._socket_url = platform.url.replace("http", "ws", 1)
        with epochcast.Client(platform.url, platform.token) as client:
            package = choose(script)
            self._body = {"bundle": client.upload(package), "entrypoint": package.entrypoint}

    def close(self) -> None:
        self._http.close()

    @property
    def work_dir(self) -> Path:
        return self.platform.data_dir / "work"

    def threads(self, *args: str) -> int:
        """How many CPU threads a job gets here, as the resolved spec of a first one says."""
        job_id = self.run(args=args).job_id
        return int(self._http.get(f"/training-jobs/{job_id}").json()["spec"]["threads"])

    def run(self, *, args: Sequence[str] = (), epochs: int = 1, env: dict[str, str] | None = None) -> Watched:
        """Submits and follows to the end. Raises RuntimeError when the job doesn't succeed."""
        body = {**self._body, "args": list(args), "total_epochs": epochs, "env": env or {}}
        submitted = time.monotonic()
        answer = self._http.post("/training-jobs", json=body)
        answered = time.monotonic()
        answer.raise_for_status()
        return self._follow(int(answer.json()["job_id"]), submitted, answered)

    def _follow(self, job_id: int, submitted: float, answered: float) -> Watched:
        """`after=0`: what happened before the socket was open comes too, so nothing is missed."""
        first_report, metrics, lines = 0.0, {}, []
        url = f"{self._socket_url}/api/v1/training-jobs/{job_id}/ws?after=0"
        headers = {"Authorization": f"Bearer {self.platform.token}"}
        # No compression: the client's side of it would be measured.
        with connect(url, additional_headers=headers, compression=None, proxy=None) as socket:
            while True:
                message = json.loads(socket.recv(timeout=ANSWER_S))
                if message["type"] == "progress" and message["current_epoch"] and not first_report:
                    first_report, metrics = time.monotonic(), message["metrics"]
                elif message["type"] == "log":
                    lines.append(message["message"])
                elif message["type"] == "complete":
                    return Watched(job_id, submitted, answered, first_report, time.monotonic(), metrics, lines)
                elif message["type"] == "error":
                    raise RuntimeError(f"job {job_id} failed: {message['error_message']}; it said {lines[-20:]}")


@contextmanager
def platform_for(script: Path, folder: Path) -> Iterator[Client]:
    """The whole platform with its data in `folder`, stopped in order at the end."""
    forget_settings()
    with Platform(folder) as platform:
        client = Client(platform, script)
        try:
            yield client
        finally:
            client.close()


def forget_settings() -> None:
    """No setting of this shell may lead a benchmark to somebody's servers."""
    for name in [name for name in os.environ if name.startswith("EPOCHCAST_")]:
        del os.environ[name]


def wait_gone(job_id: int, work_dir: Path) -> None:
    """Until the attempt's folder is gone: then nothing of it computes any more beside what is measured next."""
    folder, deadline = work_dir / "jobs" / str(job_id), time.monotonic() + 60
    while folder.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{folder} is still there a minute after its job's end")
        time.sleep(0.01)
