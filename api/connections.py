"""uvicorn's HTTP protocol, for answers that stay open: they hear of their client's end and of the gateway's."""

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import is_ssl
from uvicorn.server import ServerState

# Of a request's line and headers. Whoever sends them for ever, or a byte an hour, would otherwise be kept.
MAX_HEAD_BYTES = 64 * 1024
HEAD_S = 10.0
_EXTENSION = "epochcast.connection"

Address = tuple[str, int]


class Ending(Enum):
    """Why an open answer has to end."""

    GONE = auto()
    """The client has; nobody reads what is written."""
    RESTART = auto()
    """The gateway stops, and waits for its answers."""


class GatewayConnection(HttpToolsProtocol):
    """Every request finds its connection with `of(scope)`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._on_end: Callable[[Ending], None] | None = None
        self._ending: Ending | None = None
        self._lost: asyncio.Event | None = None
        self._head_bytes = 0
        self._is_in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    @contextmanager
    def held(self, on_end: Callable[[Ending], None]) -> Iterator[None]:
        """Calls `on_end` when the answer that is given meanwhile has to end, also when that was before."""
        # By a call, not by a task in `receive`: thousands of long polls wait here, and each would have a second task.
        self._on_end = on_end
        if self._ending is not None:
            on_end(self._ending)
        try:
            yield
        finally:
            self._on_end = None

    @property
    def is_closing(self) -> bool:
        """Nothing can be written any more; `held` will say so in a moment."""
        return self.transport.is_closing()

    async def abort(self) -> None:
        """Closes without flushing, for a peer that doesn't read: flushing is what may never end."""
        self._lost = asyncio.Event()
        self.transport.abort()
        if self._ending is not Ending.GONE:
            await self._lost.wait()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # The parent's, but for how it asks for the addresses.
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.server, self.client = addresses(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
        self._limit_head()

    def data_received(self, data: bytes) -> None:
        # Most heads come in one piece: those cost a comparison here, and no timer.
        self._head_bytes += len(data)
        super().data_received(data)
        self._limit_head()

    def _limit_head(self) -> None:
        """Bounds what has come of a request's head, and how long it takes."""
        if not self._is_in_head or self.transport.is_closing():
            self._head_bytes = 0
            self._end_head_timer()
        elif self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"The request's line and headers have more than {MAX_HEAD_BYTES} bytes.")
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _end_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()
        self.scope["extensions"] = {_EXTENSION: self}  # type: ignore[dict-item]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_head_timer()
        self._end(Ending.GONE)
        if self._lost is not None:
            self._lost.set()

    def shutdown(self) -> None:
        super().shutdown()
        self._end(Ending.RESTART)

    def _end(self, ending: Ending) -> None:
        self._ending = ending
        if self._on_end is not None:
            self._on_end(ending)


def addresses(transport: asyncio.Transport) -> tuple[Address | None, Address | None]:
    """Ours and the peer's. Not by the transport's socket, as uvicorn does: uvloop keeps that object and what it said,
    400 bytes for each connection (2026-11-29)."""
    server, client = (transport.get_extra_info(name) for name in ("sockname", "peername"))
    return _address(server), _address(client)


def _address(info: object) -> Address | None:
    return (str(info[0]), int(info[1])) if isinstance(info, tuple) and len(info) >= 2 else None


def of(scope: Scope) -> GatewayConnection:
    """The connection of a request, which `api.server` has opened."""
    connection: GatewayConnection = scope["extensions"][_EXTENSION]
    return connection
