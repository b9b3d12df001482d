"""One socket after its checks: messages out by one task and past it, whatever the client says in by calls."""

from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from api import tasks
from api.closes import INTERNAL_ERROR, TEXT_ONLY, Close, Refused
from api.peer import Peer
from api.relay import Relay
from api.sockets import GatewaySocket, Gone
from epochcast.events import EventId

logger = structlog.get_logger(__name__)

Work = Callable[[Peer], Coroutine[Any, Any, Close]]


class Conversation:
    """Goes on until its work, its client or a time-out ends it; then the close frame goes out and nothing is left.

    The route that began it returns at once: kept open, the coroutines of every middleware and FastAPI's request would
    hold half of a socket's memory for hours (54 KiB instead of the goal's 35, measured 2026-11-24).
    """

    def __init__(self, socket: GatewaySocket, relay: Relay, expires_at: float, work: Work) -> None:
        self._socket = socket
        self._relay = relay
        self._peer = Peer(self._send, expires_at, relay.limits, line=socket)
        self._peer.when_ended(self._end)
        relay.watch(self._peer)
        self._task = socket.keep(self._speak(work))
        socket.listen(self)

    async def _send(self, _identifier: EventId, text: str) -> None:
        await self._socket.send_text(text)

    async def _speak(self, work: Work) -> None:
        try:
            self._peer.end(await work(self._peer))
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

    # --- the client's side

    def heard_text(self, _text: str) -> None:
        """Its content is ignored."""
        self._peer.heard()

    def heard_bytes(self, _data: bytes) -> None:
        self._peer.end(TEXT_ONLY)

    def gone(self) -> None:
        self._peer.end(None)
