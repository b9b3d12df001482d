"""uvicorn's WebSocket protocol, held to the contract: closes that can't hang, 1012 with its reason, ready frames."""

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, Self

from starlette.types import Scope
from uvicorn._types import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent
from uvicorn._types import Scope as ServerScope
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected, is_ssl
from uvicorn.server import ServerState
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from api.burst import frame_head, is_text
from api.closes import SERVICE_RESTART, Close
from api.connections import addresses
from api.keepalive import KeptAlive, Ping

_EXTENSION = "epochcast.socket"
# How long a closing socket may take to flush what it holds and to answer the close frame.
FLUSH_S = 4.0


class Gone(Exception):
    """Raised when nothing can be sent any more: the peer has gone, or the socket is closed."""


class Listener(Protocol):
    """Hears what a client says, by calls that don't wait."""

    def heard_text(self, text: str) -> None: ...

    def heard_bytes(self, data: bytes) -> None: ...

    def gone(self) -> None:
        """The socket is closed, whoever did it. May come more than once."""


class _Ears(asyncio.Queue[ASGIReceiveEvent]):
    """In the place of the queue that an application would read: nobody waits, so nothing is kept."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener  # and no queue: its three deques are 2 KiB

    def put_nowait(self, item: ASGIReceiveEvent) -> None:
        if item["type"] == "websocket.disconnect":
            self._listener.gone()
        elif item["type"] == "websocket.receive":
            data = item.get("bytes")
            if data is not None:
                self._listener.heard_bytes(data)
            else:
                self._listener.heard_text(item.get("text") or "")


class _Rules(ServerProtocol):
    """A close frame may come between the fragments of a message (RFC 6455, section 5.4), as any control frame."""

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None  # the parent answers with 1002 while a message is incomplete (websockets 17.4)
        super().recv_frame(frame)


class GatewaySocket(KeptAlive):
    """Differs from its parent where a peer that doesn't read would keep it: every end is bounded by an abort.

    It is the `Line` of its peer: messages may be written past ASGI, whole frames between the parent's own. Once
    somebody listens, it needs its application no more, and lives on when that has returned.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.server_state = server_state
        self._set_rules(State.CONNECTING)
        self._query = b""
        self._application = self.app
        self.app = self._run_with_query
        self._is_kept = False
        self._has_returned = False
        self._drains = False
        self.has_written = False
        self.stalled: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # The parent's, but for how it asks for the addresses.
        self.connections.add(self)
        self.transport = transport
        self._hold_nothing_back()
        self.server, self.client = addresses(transport)
        self.scheme = "wss" if is_ssl(transport) else "ws"

    def _hold_nothing_back(self) -> None:
        """Whatever the transport holds pauses: so while the line drains, bytes may pass it by (api/fan_out.py)."""
        self.transport.set_write_buffer_limits(high=0)
        if self.transport.get_write_buffer_size():
            self.pause_writing()  # an answer before the upgrade: its protocol was told, and this one will be of the end

    @classmethod
    def reopened(
        cls, config: Config, server_state: ServerState, transport: asyncio.Transport, ping: Ping, *, is_answered: bool
    ) -> Self:
        """For a connection that is open since long, and was last kept alive by that ping."""
        socket = cls(config, server_state, {})
        socket._set_rules(State.OPEN)
        socket.connections.add(socket)
        socket.transport = transport
        socket.handshake_initiated = socket.handshake_complete = socket._has_returned = True
        socket.go_on_from(ping, is_answered=is_answered)
        socket._hold_nothing_back()
        socket._reconsider()
        transport.set_protocol(socket)
        return socket

    def _set_rules(self, state: State) -> None:
        self.conn = _Rules(max_size=self.config.ws_max_size, logger=self.logger, state=state)
        self.conn.debug = False  # it would log the handshake word for word, tokens included

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            # uvicorn logs the path with its query, in which a token may stand: only the application sees it.
            self._query, self.scope["query_string"] = self.scope["query_string"], b""
            self.scope["extensions"] = {**self.scope["extensions"], _EXTENSION: self}  # type: ignore[dict-item]

    async def _run_with_query(self, scope: ServerScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await self._application({**scope, "query_string": self._query}, receive, send)

    # --- without the application

    def listen(self, listener: Listener) -> None:
        """From now on the listener hears everything, also what was said before and not received."""
        events, self.queue = self.queue, _Ears(listener)
        self._is_kept = True
        while not events.empty():
            self.queue.put_nowait(events.get_nowait())
        self._read_on()
        # What only the handshake needed, and a reopened one never had.
        for name in ("scope", "request", "response"):
            vars(self).pop(name, None)
        self._query = b""

    @property
    def is_calm(self) -> bool:
        """Nothing waits to be written, nothing has been read in part, no answer is awaited, the application is done."""
        return (
            self.drains
            and self._has_returned
            and not self.frames
            and self.conn.current_size is None
            and self.is_between_frames()
            and self.last_ping is not None
            and self.transport.get_write_buffer_size() == 0
        )

    def retire(self) -> None:
        """Another protocol takes the connection over. What refers to itself is cut, for it to be freed at once."""
        self.stop_keepalive()
        self.connections.discard(self)
        self.conn.parser.close()
        self.queue = asyncio.Queue()
        self.app = self._application

    def keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs it as a task for which the server waits at its end."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def send_text(self, text: str) -> None:
        """Waits while the peer doesn't drain. Raises Gone."""
        payload = text.encode()
        while not self.writable.is_set():  # it may be over again before whoever waits has its turn
            await self.writable.wait()
        if not self.drains:
            raise Gone
        self.write(frame_head(len(payload)) + payload)

    def close(self, close: Close) -> None:
        """Sends the close frame, without waiting until the peer drains: that is what may never happen."""
        self._close(close)

    async def run_asgi(self) -> None:
        """As the parent's, which would close a socket whose application has returned."""
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except Exception:
            self.logger.exception("Exception in ASGI application\n")
            self.send_500_response()
        self._has_returned = True
        if not self._is_kept and self.close_timer is None:
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not is_text(b"".join(self.frames)):
            # Before the parent, which writes a traceback into the log for each.
            self.conn.send_close(CloseCode.INVALID_DATA)
            self.handle_parser_exception()
            return
        super().send_receive_event_to_app()
        if self._is_kept:
            self._read_on()

    def _read_on(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    # --- the line

    @property
    def drains(self) -> bool:
        return self._drains

    @drains.setter
    def drains(self, drains: bool) -> None:
        self._drains = drains
        if not drains and self.stalled is not None:
            self.stalled()

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
        self.drains = False  # before anything else: with the return of this call its socket may be another's
        # Else `receive` would resume the reading of a closed handle, at which uvloop raises.
        self.read_paused = False
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self._reconsider()

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self.drains = False

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close" and self.handshake_complete and not self.disconnected:
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
        self._read_on()
        self.close_timer = self.loop.call_later(FLUSH_S, self.transport.abort)


def of(scope: Scope) -> GatewaySocket:
    """The connection of a socket, which `api.server` has opened."""
    socket: GatewaySocket = scope["extensions"][_EXTENSION]
    return socket
