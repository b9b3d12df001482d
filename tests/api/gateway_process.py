"""The real gateway as a process of its own, which a test ends and starts again on the same port."""

import os
import signal
import subprocess
import sys

import httpx2

from shared.embedded import free_port
from shared.processes import dies_with_parent
from shared.settings import Settings
from tests.api.serving import CHECKOUT, environment
from tests.waiting import wait_until


class GatewayProcess:
    """`python -m api` on one port, which outlives its ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "api", "--quiet"],
            cwd=CHECKOUT,
            env={**os.environ, **environment(self._settings), "EPOCHCAST_PORT": str(self.port)},
            preexec_fn=dies_with_parent(),
        )
        wait_until(self._is_ready, "the gateway", timeout_s=60)

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/healthz", trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False

    def end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)

    def __enter__(self) -> "GatewayProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)
