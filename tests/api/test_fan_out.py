"""Bytes that pass a transport by: everybody gets the same, in order, and nobody gets what is another's."""

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from api.fan_out import Connected, Fan, fan

pytestmark = pytest.mark.anyio

LONG = 4 * 1024 * 1024
"""More than the two kernel buffers of a socket take."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@dataclass
class Line(asyncio.Protocol):
    """The server's end of a connection, as `GatewaySocket` holds it."""

    accepted: "asyncio.Queue[Line]"
    transport: asyncio.Transport = field(init=False)
    is_paused: bool = False
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    on_lost: Callable[[], None] = lambda: None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.set_write_buffer_limits(high=0)
        self.accepted.put_nowait(self)

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.resumed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_lost()


@contextlib.asynccontextmanager
async def connected(count: int) -> AsyncIterator[tuple[list[Line], list[socket.socket]]]:
    accepted: asyncio.Queue[Line] = asyncio.Queue()
    server = await asyncio.get_running_loop().create_server(lambda: Line(accepted), "127.0.0.1", 0)
    lines, clients = [], []
    try:
        for _ in range(count):
            clients.append(socket.create_connection(server.sockets[0].getsockname()))
            clients[-1].setblocking(False)
            lines.append(await accepted.get())
        yield lines, clients
    finally:
        for client in clients:
            client.close()
        server.close()
        await server.wait_closed()


async def read(client: socket.socket, size: int) -> bytes:
    loop, got = asyncio.get_running_loop(), b""
    while len(got) < size:
        piece = await loop.sock_recv(client, size - len(got))
        assert piece, f"closed after {len(got)} bytes"
        got += piece
    return got


def nobody(line: Connected) -> None:
    pytest.fail("it could be written to")


async def test_all_get_the_same_in_order(kind_of_fan: type[Fan]) -> None:
    async with connected(5) as (lines, clients):
        all_of_them = fan(lines, nobody)
        assert type(all_of_them) is kind_of_fan
        for frames in (b"one ", b"two ", b"three"):
            all_of_them.write(frames)
        assert [await read(client, 13) for client in clients] == [b"one two three"] * 5


async def test_one_that_does_not_read_gets_the_rest_later_and_delays_nobody(kind_of_fan: type[Fan]) -> None:
    frames = os.urandom(LONG)
    async with connected(3) as (lines, clients):
        readers = [asyncio.create_task(read(client, LONG)) for client in (clients[0], clients[2])]
        fan(lines, nobody).write(frames)
        assert lines[1].is_paused, "its transport holds the rest back, and says so"
        assert [await reader for reader in readers] == [frames] * 2
        assert lines[1].is_paused
        assert await read(clients[1], LONG) == frames
        await lines[1].resumed.wait()
        fan(lines, nobody).write(b"more")
        assert await read(clients[1], 4) == b"more"


async def test_one_whose_peer_is_gone_ends_alone(kind_of_fan: type[Fan]) -> None:
    async with connected(3) as (lines, clients):
        lost = asyncio.Event()
        lines[1].on_lost = lost.set
        clients[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        clients[1].close()  # with a reset
        fan(lines, nobody).write(b"frames")
        await lost.wait()
        assert [await read(clients[index], 6) for index in (0, 2)] == [b"frames"] * 2


async def test_a_closed_one_gets_nothing_and_is_told_of(kind_of_fan: type[Fan]) -> None:
    fallen: list[Connected] = []
    async with connected(3) as (lines, clients):
        lost = asyncio.Event()
        lines[1].on_lost = lost.set
        lines[1].transport.abort()
        await lost.wait()
        await asyncio.sleep(0)  # and `connection_lost` has returned
        fan(lines, fallen.append).write(b"frames")
        assert [await read(clients[index], 6) for index in (0, 2)] == [b"frames"] * 2
    assert fallen == [lines[1]]


@pytest.mark.parametrize("end", ["abort", "close", "the peer"])
async def test_a_socket_is_open_until_its_protocol_has_heard_of_the_end(end: str) -> None:
    """What `DirectFan` relies on: before that nobody else can have got its descriptor."""
    async with connected(1) as (lines, clients):
        (line,), descriptor = lines, lines[0].transport.get_extra_info("socket").fileno()
        before, lost = os.fstat(descriptor).st_ino, asyncio.Event()
        seen = []

        def look() -> None:
            seen.append(os.fstat(descriptor).st_ino)
            lost.set()

        line.on_lost = look
        if end == "the peer":
            clients[0].close()
        else:
            getattr(line.transport, end)()
            assert os.fstat(descriptor).st_ino == before
        await lost.wait()
        assert seen == [before]


async def test_it_goes_by_transports_where_something_is_in_between() -> None:
    """TLS above all: what passes it by would be sent in the clear."""

    class Between:
        transport = asyncio.Transport()

    async with connected(1) as (lines, _):
        assert type(fan([*lines, Between()], nobody)) is Fan


async def test_no_other_thread_has_a_turn_between_two_sends(kind_of_fan: type[Fan]) -> None:
    """As it would with `os.write`, which lets go of Python's lock: beside a busy thread it gets it back 5 ms later."""
    turns, stop = 0, threading.Event()

    def keep_turning() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1
            time.sleep(0)

    async with connected(10) as (lines, clients):
        all_of_them, thread = fan(lines, nobody), threading.Thread(target=keep_turning)
        switching_s = sys.getswitchinterval()
        thread.start()
        try:
            sys.setswitchinterval(1000)  # nobody has to give the lock away
            before = turns
            for _ in range(100):
                all_of_them.write(b"frame")
            after = turns
        finally:
            sys.setswitchinterval(switching_s)
            stop.set()
            thread.join()
        assert after == before
        for client in clients:
            assert len(await read(client, 500)) == 500
