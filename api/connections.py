"""uvicorn's HTTP protocol, for answers that stay open: they hear of their client's end and of the gateway's."""

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

_EXTENSION = "epochcast.connection"


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

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {_EXTENSION: self}  # type: ignore[dict-item]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
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


def of(scope: Scope) -> GatewayConnection:
    """The connection of a request, which `api.server` has opened."""
    connection: GatewayConnection = scope["extensions"][_EXTENSION]
    return connection
