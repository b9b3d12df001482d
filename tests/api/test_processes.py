"""Several gateway processes on one port are one gateway: one limit, and places that outlive no process."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage

from shared.embedded import free_port
from shared.processes import dies_with_parent, end
from shared.settings import Settings
from tests.api.reading import drain, receive
from tests.api.serving import CHECKOUT, environment
from tests.api.training import Training
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

PROCESSES = 3
PLACES = 10


async def test_processes_share_the_limit_and_a_killed_one_gives_its_places_back(
    open_settings: Settings, training: Training
) -> None:
    with _gateway(open_settings) as (gateway, port):
        url = f"ws://127.0.0.1:{port}/api/v1/training-jobs/{training.job_id}/ws"
        held = [socket for socket in [await _try(url) for _ in range(4 * PLACES)] if socket is not None]
        assert len(held) == PLACES
        by_process = _peers(gateway, port)
        assert len(by_process) > 1, "the kernel gave all connections to one process"
        victim = max(by_process, key=lambda number: len(by_process[number]))
        lost = [socket for socket in held if socket.local_address[1] in by_process[victim]]
        os.kill(victim, signal.SIGKILL)
        back: list[ClientConnection] = []
        async with asyncio.timeout(60):
            while len(back) < len(lost):
                if (socket := await _try(url)) is not None:
                    back.append(socket)
        assert await _try(url) is None
        kept = [socket for socket in held if socket not in lost] + back
        gateway.terminate()
        for socket in kept:
            assert (await drain(socket))[1:] == (1012, "service restart")


@contextmanager
def _gateway(settings: Settings) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    port = free_port()
    more = {"EPOCHCAST_PORT": str(port), "EPOCHCAST_GATEWAY_PROCESSES": str(PROCESSES)}
    process = subprocess.Popen(
        [sys.executable, "-m", "api", "--quiet"],
        cwd=CHECKOUT,
        env={**os.environ, **environment(settings), **more},
        preexec_fn=dies_with_parent(signal.SIGTERM),
    )
    try:
        wait_until(lambda: _listening(process, port) == PROCESSES, "all processes", timeout_s=90)
        yield process, port
    finally:
        end(process, 20)


def _listening(gateway: "subprocess.Popen[bytes]", port: int) -> int:
    return sum(
        any(one.status == "LISTEN" and one.laddr.port == port for one in connections)
        for connections in _connections(gateway).values()
    )


def _peers(gateway: "subprocess.Popen[bytes]", port: int) -> dict[int, set[int]]:
    """By process, the ports of the clients that it serves."""
    found = {}
    for pid, connections in _connections(gateway).items():
        served = {one.raddr.port for one in connections if one.raddr and one.laddr.port == port}
        if served:
            found[pid] = served
    return found


def _connections(gateway: "subprocess.Popen[bytes]") -> dict[int, list[Any]]:
    """By process; those that end while they are looked at are left out."""
    found = {}
    for child in psutil.Process(gateway.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found[child.pid] = child.net_connections()
    return found


async def _try(url: str) -> ClientConnection | None:
    """An open socket that has had its first message; None when it was refused or its process is gone."""
    try:
        socket = await connect(url, open_timeout=20)
    except (OSError, InvalidMessage):  # the latter when its process died before it answered
        return None
    try:
        await receive(socket, timeout_s=20)
    except ConnectionClosed:
        return None
    return socket
