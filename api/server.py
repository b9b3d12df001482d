"""One gateway process: its listening socket and uvicorn as the contract wants it."""

import ctypes
import gc
import os
import socket

import uvicorn
from starlette.types import ASGIApp

from api.app import create_app
from api.connections import GatewayConnection
from api.keepalive import PING_S, PONG_S
from api.sockets import FLUSH_S, GatewaySocket
from shared.settings import Settings

MAX_FRAME_BYTES = 64 * 1024
# A peer that acknowledges nothing for that long is gone; by default it would keep its socket for a quarter of an hour.
USER_TIMEOUT_S = 10
# Little waits unsent in the kernel, so that a peer that doesn't read is noticed and not hidden by megabytes of buffer.
UNSENT_BYTES = 64 * 1024
BACKLOG = 2048
# malloc.h, of glibc
_M_ARENA_MAX = -8


def open_listener(bind: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; what is set on it is inherited by every connection. Port 0: any free one.

    `shared`: several processes listen on the same port (SO_REUSEPORT). Raises OSError when the port is taken.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        bind, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_S * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    """Logging is left as it is: the entry point has set it up."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=GatewayConnection,
        ws=GatewaySocket,
        ws_max_size=MAX_FRAME_BYTES,
        ws_ping_interval=PING_S,
        ws_ping_timeout=PONG_S,
        # One frame for all subscribers, and no compressor's memory per socket.
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        server_header=False,
        backlog=BACKLOG,
        # Sockets have been told (1012) and have had FLUSH_S to answer; requests get the same time to end.
        timeout_graceful_shutdown=int(FLUSH_S) + 4,
    )


def serve(settings: Settings, listener: socket.socket | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then tells every socket (1012) and returns. Raises OSError for a taken port."""
    use_one_heap()
    app = create_app(settings)
    _collect_rarely()
    uvicorn.Server(uvicorn_config(app)).run([listener or open_listener(settings.bind, settings.port)])


def use_one_heap() -> None:
    """glibc's malloc would give each thread a heap of its own, of which most is never used again: half a KiB for each
    of 5,000 idle sockets (2026-11-30). Threads that take turns anyway don't need that; another libc has none.

    MALLOC_ARENA_MAX in the environment goes before.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (OSError, AttributeError):
        return


def _collect_rarely() -> None:
    """What is there now stays; the rest is mostly freed without the collector, which took a tenth of the relay's time
    with its usual thresholds and thousands of sockets to look through (measured 2026-11-24)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
