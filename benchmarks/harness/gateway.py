"""A gateway as a process of its own, for benchmarks that look at it from outside."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2

from shared.embedded import free_port
from shared.processes import dies_with_parent, end

READY_S = 60.0


@contextmanager
def gateway(settings: Mapping[str, str], folder: Path) -> Iterator[str]:
    """Its address, once it answers; what it says goes into a file in `folder`."""
    port, log = free_port(), folder / "gateway.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "api", "--quiet"],
            env={**os.environ, **settings, "EPOCHCAST_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=subprocess.STDOUT,
            preexec_fn=dies_with_parent(),
        )
    url = f"http://localhost:{port}"
    try:
        deadline = time.monotonic() + READY_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the gateway did not start: {log.read_text()[-1000:]}")
            time.sleep(0.05)
        yield url
    finally:
        end(process, grace_s=15)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", trust_env=False, timeout=5).is_success
    except httpx2.TransportError:
        return False
