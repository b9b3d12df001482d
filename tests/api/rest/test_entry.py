"""`python -m api`: what it refuses, one process or several, and its end."""

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from shared.embedded import free_port
from shared.processes import dies_with_parent, end
from tests.waiting import wait_until

CHECKOUT = Path(__file__).parents[3]
SECRET = secrets.token_hex(32)


@contextmanager
def gateway(folder: Path, **settings: str) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """The process and its log."""
    log = folder / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "api"],
            cwd=CHECKOUT,
            env={**os.environ, **{f"EPOCHCAST_{name}": value for name, value in settings.items()}},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=dies_with_parent(),
        )
    try:
        yield process, log
    finally:
        end(process, 15)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "EPOCHCAST_SECRET"),
        ({"SECRET": "short"}, "32 bytes"),
        ({"PORT": "70000"}, "EPOCHCAST_PORT"),
        ({"AUTH": "none", "BIND": "0.0.0.0"}, "EPOCHCAST_BIND is 0.0.0.0"),
        ({"AUTH": "none", "BIND": "::"}, "EPOCHCAST_BIND is ::"),
        ({"SECRET": SECRET, "BIND": "0.0.0.0"}, "EPOCHCAST_ALLOWED_HOSTS"),
        ({"JWKS_URL": "http://127.0.0.1:9/keys"}, "EPOCHCAST_ISSUER"),
        ({"AUTH": "none", "BIND": "127.0.0.1", "PORT": "taken"}, "address already in use"),
        ({"AUTH": "none", "PORT": "taken", "GATEWAY_PROCESSES": "2"}, "address already in use"),
    ],
)
def test_what_can_not_be_served_is_one_line_and_exit_2(tmp_path: Path, settings: dict[str, str], named: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        if settings.get("PORT") == "taken":
            settings = settings | {"PORT": str(other.getsockname()[1])}
        with gateway(tmp_path, **settings) as (process, log):
            assert process.wait(60) == 2
    (line,) = log.read_text().splitlines()
    assert line.startswith("epochcast gateway: ")
    assert named in line
    assert SECRET not in line


def served(port: int, path: str = "/readyz") -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.mark.parametrize("processes", ["1", "2"])
def test_it_serves_until_sigterm_and_ends_with_0(
    tmp_path: Path, sqlite_url: str, redis_url: str, processes: str
) -> None:
    port = free_port()
    settings = {"DATABASE_URL": sqlite_url, "BROKER_URL": redis_url, "SECRET": SECRET, "PORT": str(port)}
    with gateway(tmp_path, **settings, GATEWAY_PROCESSES=processes) as (process, log):
        wait_until(lambda: served(port), "the gateway", timeout_s=40)
        httpx2.get(f"http://127.0.0.1:{port}/api/v1/hosts?token=eyJh.eyJz.c2ln", trust_env=False, timeout=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not served(port)
    assert "eyJh" not in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_process_that_is_killed_is_replaced(tmp_path: Path, sqlite_url: str, redis_url: str) -> None:
    port = free_port()
    settings = {"DATABASE_URL": sqlite_url, "BROKER_URL": redis_url, "AUTH": "none", "PORT": str(port)}
    with gateway(tmp_path, **settings, GATEWAY_PROCESSES="2") as (process, _log):

        def children() -> set[int]:
            return {child.pid for child in psutil.Process(process.pid).children()}

        def both_listen() -> bool:
            listening = {
                connection.pid
                for connection in psutil.net_connections("tcp")
                if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
            }
            return len(listening & children()) == 2

        wait_until(both_listen, "two processes on one port", timeout_s=40)
        before = children()
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: both_listen() and children() != before, "the replacement", timeout_s=40)
        wait_until(lambda: served(port), "its answer", timeout_s=40)


def test_nothing_outlives_a_killed_parent(tmp_path: Path, sqlite_url: str, redis_url: str) -> None:
    port = free_port()
    settings = {"DATABASE_URL": sqlite_url, "BROKER_URL": redis_url, "AUTH": "none", "PORT": str(port)}
    with gateway(tmp_path, **settings, GATEWAY_PROCESSES="2") as (process, _log):
        wait_until(lambda: served(port), "the gateway", timeout_s=40)
        children = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        gone, alive = psutil.wait_procs(children, timeout=20)
        assert (len(gone), alive) == (2, [])
