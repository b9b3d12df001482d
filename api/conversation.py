"""One socket after its checks: messages out by one task and past it, whatever the client says in by calls."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from uvicorn.config import Config
from uvicorn.server import ServerState

from api import tasks
from api.closes import INTERNAL_ERROR, TEXT_ONLY, Close, Refused
from api.following import Following, Rest
from api.keepalive import Ping
from api.light import LightSocket
from api.peer import Peer
from api.relay import Relay
from api.sockets import GatewaySocket, Gone
from epochcast.events import EventId

logger = structlog.get_logger(__name__)

Work = Callable[[Peer], Coroutine[Any, Any, Close | None]]
"""Returns how to close the socket; None: it came to rest."""


class Conversation:
    """Goes on until its work, its client or a time-out ends it; then the close frame goes out and nothing is left.

    The route that began it returns at once: kept open, the coroutines of every middleware and FastAPI's request would
    hold half of a socket's memory for hours (54 KiB instead of the goal's 35, measured 2026-11-24).

    `following`: what the work does, if it can rest; the conversation then gives way to a `Pause`.
    """

    def __init__(
        self, socket: GatewaySocket, relay: Relay, expires_at: float, work: Work, following: Following | None = None
    ) -> None:
        self._socket = socket
        self._relay = relay
        self._following = following
        self._peer = Peer(self._send, expires_at, relay.limits, line=socket, on_calm=self._rest)
        self._peer.when_ended(self._end)
        relay.watch(self._peer)
        self._task = socket.keep(self._speak(work))
        socket.listen(self)

    @classmethod
    def resumed(cls, socket: GatewaySocket, relay: Relay, pause: "Pause") -> None:
        following = relay.following(pause.rest.slot.job_id)
        conversation = cls(socket, relay, pause.expires_at, following.go_on, following)
        conversation._peer.active_at = pause.active_at
        following.wake(conversation._peer, pause.rest)

    async def _send(self, _identifier: EventId, text: str) -> None:
        await self._socket.send_text(text)

    async def _speak(self, work: Work) -> None:
        try:
            close = await work(self._peer)
            if close is not None:
                self._peer.end(close)
        except Refused as refused:
            self._peer.end(refused.close)
        except Gone:
            self._peer.end(None)
        except Exception:
            logger.exception("a socket's messages broke off")
            self._peer.end(INTERNAL_ERROR)

    def _end(self, close: Close | None) -> None:
        self._relay.forget(self._peer)
        if close is not None:
            self._socket.close(close)
        # After the close frame: giving the place back may take Redis a moment.
        self._socket.keep(tasks.end([self._task]))

    def _rest(self, remaining_s: float) -> None:
        """Gives way to a pause, if nothing happens now and nothing will have to soon."""
        relay, socket, peer = self._relay, self._socket, self._peer
        if self._following is None or remaining_s <= relay.lights.least_s or not socket.is_calm:
            return
        ping = socket.last_ping
        if ping is None:
            return
        rest = self._following.rest()
        if rest is None:
            return
        relay.forget(peer)
        socket.retire()
        pause = Pause(relay, socket.config, socket.server_state, socket.transport, rest, ping, peer)
        pause.begin()
        # Conversation, peer and socket know each other: cut, they are freed now and not by the collector.
        del self._socket, self._peer, self._task

    # --- the client's side

    def heard_text(self, _text: str) -> None:
        """Its content is ignored."""
        self._peer.heard()

    def heard_bytes(self, _data: bytes) -> None:
        self._peer.end(TEXT_ONLY)

    def gone(self) -> None:
        self._peer.end(None)


class Pause(LightSocket):
    """Between two conversations with the same client."""

    __slots__ = ("_config", "_relay", "_server_state")

    def __init__(
        self,
        relay: Relay,
        config: Config,
        server_state: ServerState,
        transport: asyncio.Transport,
        rest: Rest,
        ping: Ping,
        peer: Peer,
    ) -> None:
        super().__init__(transport, rest, ping, expires_at=peer.expires_at, active_at=peer.active_at)
        self._relay = relay
        self._config = config
        self._server_state = server_state

    def begin(self) -> None:
        self.transport.set_protocol(self)
        self._relay.lights.add(self, self._server_state.connections)
        self.rest.level.settle(self)

    def wake(self) -> GatewaySocket:
        self.rest.level.rise(self)
        self._relay.lights.remove(self)
        socket = GatewaySocket.reopened(
            self._config, self._server_state, self.transport, self.ping, is_answered=self.is_answered
        )
        Conversation.resumed(socket, self._relay, self)
        return socket
