"""uvicorn's WebSocket protocol, held to the contract: closes that can't hang, jittered pings, 1012 with its reason."""

import random
from asyncio import AbstractEventLoop
from typing import Any

from starlette.types import Scope
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from uvicorn._types import Scope as ServerScope
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.http11 import Request

from api.closes import SERVICE_RESTART, Close

PING_S = 5.0
PONG_S = 5.0
# 5 s without a pong after at most 5.75 s without a ping: a dead peer is gone within 11 s.
JITTER = 0.15
_EXTENSION = "epochcast.socket"
# How long a closing socket may take to flush what it holds and to answer the close frame.
FLUSH_S = 4.0


class GatewaySocket(WebSocketsSansIOProtocol):
    """Differs from its parent where a peer that doesn't read would keep it: every end is bounded by an abort.

    It is the `Line` of its peer: messages may be written past ASGI, whole frames between the parent's own.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn.debug = False  # it would log the handshake word for word, tokens included
        self._query = b""
        self._application = self.app
        self.app = self._run_with_query
        self.drains = False
        self.has_written = False

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            # uvicorn logs the path with its query, in which a token may stand: only the application sees it.
            self._query, self.scope["query_string"] = self.scope["query_string"], b""
            self.scope["extensions"] = {**self.scope["extensions"], _EXTENSION: self}  # type: ignore[dict-item]

    async def _run_with_query(self, scope: ServerScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await self._application({**scope, "query_string": self._query}, receive, send)

    # --- the line

    def write(self, frames: bytes) -> None:
        self.has_written = True
        self.transport.write(frames)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.drains = False

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reconsider()

    def _reconsider(self) -> None:
        """After anything that may have ended the connection: what is closed takes no more messages."""
        self.drains = (
            self.writable.is_set()
            and self.handshake_complete
            and not self.close_sent
            and not self.disconnected
            and not self.transport.is_closing()
        )

    # --- ends

    def connection_lost(self, exc: Exception | None) -> None:
        # Else `receive` would resume the reading of a closed handle, at which uvloop raises.
        self.read_paused = False
        super().connection_lost(exc)
        self.drains = False

    def handle_events(self) -> None:
        super().handle_events()
        self._reconsider()

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self.drains = False

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close" and self.handshake_complete and not self.disconnected:
            # Without waiting until the peer drains: that is what may never happen.
            self._close(Close(message.get("code", 1000), message.get("reason") or ""))
            return
        await self.writable.wait()
        if self.close_sent and self.handshake_complete:
            raise ClientDisconnected
        await super().send(message)
        if message["type"] == "websocket.accept":
            self._reconsider()

    def shutdown(self) -> None:
        """The server stops. The parent closes without a reason and doesn't wait for the peer's answer."""
        if self.transport.is_closing():
            return  # uvloop raises at a write to what is closed, and nobody after this one would be told
        if self.handshake_complete:
            self._close(SERVICE_RESTART)
        else:
            super().shutdown()

    def _close(self, close: Close) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        self.drains = False
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.conn.send_close(close.code, close.reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(FLUSH_S, self.transport.abort)

    def schedule_ping(self) -> None:
        if self.ping_interval is not None:
            # Sockets that opened together (a reconnecting crowd) shall not be pinged together for ever.
            delay = self.ping_interval * random.uniform(1 - JITTER, 1 + JITTER)
            self.ping_timer = self.loop.call_later(max(0.0, delay - self.last_ping_rtt), self.send_keepalive_ping)

    def keepalive_timeout(self) -> None:
        """The peer is dead or reads nothing: a close frame would wait behind what it doesn't read."""
        self.pong_timer = None
        self.pending_ping_payload = None
        self.drains = False
        self.transport.abort()


def of(scope: Scope) -> GatewaySocket:
    """The connection of a socket, which `api.server` has opened."""
    socket: GatewaySocket = scope["extensions"][_EXTENSION]
    return socket
