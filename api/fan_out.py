"""The same bytes to many connections: by one call of C where `make setup` has built it, else by their transports."""

import asyncio
import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import structlog
from uvloop.loop import TCPTransport  # type: ignore[attr-defined]  # its stubs name only the loop

logger = structlog.get_logger(__name__)

LIBRARY = Path(__file__).with_name("libfan_out.so")

Send = Callable[[object, int, int, bytes, int], int]
"""`fan_out` of fan_out.c."""


class Connected(Protocol):
    """Who has a transport that holds nothing back, so that bytes may pass it by."""

    @property
    def transport(self) -> asyncio.Transport: ...


Fell = Callable[[Connected], None]
"""Called with one that can't be written to, should there ever be one: it has missed something, so it has to end."""


class Fan:
    """Some connections, in one order. Never changed, only replaced: a write may make its own peer leave."""

    __slots__ = ("_fell", "_lines")

    def __init__(self, lines: Sequence[Connected], fell: Fell) -> None:
        self._lines = lines
        self._fell = fell

    def write(self, frames: bytes) -> None:
        for line in self._lines:
            self._write(line, frames)

    def _write(self, line: Connected, frames: bytes) -> None:
        try:
            line.transport.write(frames)
        except Exception:
            logger.exception("relay: a socket could not be written to")
            self._fell(line)


class DirectFan(Fan):
    """Sends to their sockets. A transport is only given what its socket has not taken, and then finds out why.

    A transport's socket stays open until `connection_lost` has returned; who is told of that must be out by then.
    """

    __slots__ = ("_count", "_send", "_sockets")

    def __init__(self, lines: Sequence[Connected], fell: Fell, send: Send) -> None:
        super().__init__(lines, fell)
        self._send = send
        self._count = len(lines)
        self._sockets = (ctypes.c_int * self._count)(*(_descriptor(line.transport) for line in lines))

    def write(self, frames: bytes) -> None:
        send, sockets, count, length = self._send, self._sockets, self._count, len(frames)
        told = send(sockets, 0, count, frames, length)
        while told != count:
            at, taken = told & 0xFFFF_FFFF, told >> 32
            self._write(self._lines[at], frames[taken:])
            told = send(sockets, at + 1, count, frames, length)


def fan(lines: Sequence[Connected], fell: Fell) -> Fan:
    """The quicker one, where nothing is between their transports and their sockets."""
    send = compiled()
    if send is not None and all(type(line.transport) is TCPTransport for line in lines):
        return DirectFan(lines, fell, send)
    return Fan(lines, fell)


@cache
def compiled() -> Send | None:
    """None where it was not built, or for another machine."""
    try:
        # With Python's lock held: to let go of it at each send would mean to wait for every busy thread, each time.
        function = ctypes.PyDLL(str(LIBRARY)).fan_out
    except (OSError, AttributeError):
        return None
    # The arguments are declared nowhere, for to check each would take as long as what it sends: only an array of C
    # ints, ints and bytes of less than 2 GiB may be given.
    function.restype = ctypes.c_int64
    return function


def _descriptor(transport: asyncio.Transport) -> int:
    """-1, which takes nothing, for one that is closed."""
    try:
        return int(transport.get_extra_info("socket").fileno())
    except (OSError, AttributeError, RuntimeError):
        return -1
