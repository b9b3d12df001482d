"""Several gateway processes on one port; one that dies is replaced."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from api.server import open_listener
from shared.processes import dies_with_parent
from shared.settings import Settings

logger = structlog.get_logger(__name__)

ONE_OF_MANY = "--process"
# Longer than a process needs to tell its sockets and end its requests.
GRACE_S = 12.0
LONGEST_PAUSE_S = 30.0
# One that lived this long was healthy: its successor starts at once.
HEALTHY_S = 60.0
_LOOK_S = 0.1


class CannotListen(Exception):
    """Raised when the address is taken, foreign or forbidden."""

    def __init__(self, bind: str, port: int, error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        super().__init__(f"can't listen on {bind} port {port}: {reason}; set EPOCHCAST_PORT or EPOCHCAST_BIND")


def listen(settings: Settings, *, shared: bool) -> socket.socket:
    """`shared`: with other processes of ours. Raises CannotListen."""
    try:
        return open_listener(settings.bind, settings.port, shared=shared)
    except OSError as error:
        raise CannotListen(settings.bind, settings.port, error) from error


@dataclass
class _Slot:
    """One of the processes and those that took its place."""

    number: int
    process: subprocess.Popen[bytes]
    started: float
    pause_s: float = 0.0
    start_at: float | None = None


def run(settings: Settings, arguments: Sequence[str] = ()) -> int:
    """Runs until SIGTERM, SIGINT or SIGHUP; each process gets `arguments`. The exit code. Raises CannotListen."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with _reserved(settings) as reservation:
        port = reservation.getsockname()[1]
        slots = [
            _Slot(number, _start(number, port, arguments), time.monotonic())
            for number in range(settings.gateway_processes)
        ]
        try:
            while not stop.wait(_LOOK_S):
                for slot in slots:
                    _look_after(slot, port, arguments)
        finally:
            _end([slot.process for slot in slots])
    return 0


def _reserved(settings: Settings) -> socket.socket:
    """Keeps the port ours while processes come and go, without listening itself."""
    # First without sharing: two gateways would otherwise divide the port's connections between them, unnoticed.
    with listen(settings, shared=False) as probe:
        family, address = probe.family, probe.getsockname()
    reservation = socket.socket(family, socket.SOCK_STREAM)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        reservation.bind(address)
    except OSError as error:
        reservation.close()
        raise CannotListen(settings.bind, settings.port, error) from error
    return reservation


def _start(number: int, port: int, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "api", *arguments, ONE_OF_MANY, str(number)],
        env={**os.environ, "EPOCHCAST_PORT": str(port)},
        stdin=subprocess.DEVNULL,
        # Ctrl-C is for us; we stop them in order.
        start_new_session=True,
        preexec_fn=dies_with_parent(signal.SIGTERM),
    )


def _look_after(slot: _Slot, port: int, arguments: Sequence[str]) -> None:
    now = time.monotonic()
    if slot.start_at is None:
        code = slot.process.poll()
        if code is None:
            return
        slot.pause_s = 0.0 if now - slot.started > HEALTHY_S else min(LONGEST_PAUSE_S, max(0.5, 2 * slot.pause_s))
        slot.start_at = now + slot.pause_s
        logger.error("a gateway process ended; it is replaced", number=slot.number, code=code, pause_s=slot.pause_s)
    if now >= slot.start_at:
        slot.process, slot.started, slot.start_at = _start(slot.number, port, arguments), now, None


def _end(processes: list["subprocess.Popen[bytes]"]) -> None:
    """All at once: each tells its sockets to come back, and none waits for another."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
