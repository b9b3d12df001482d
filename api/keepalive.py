"""Pings of a WebSocket, cheap enough for thousands: a peer that doesn't answer is gone within 11 s."""

import random
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

PING_S = 5.0
PONG_S = 5.0
# 5 s without a pong after at most 5.75 s without a ping.
JITTER = 0.15
# Heads of a ping and of a client's pong with four bytes, and the length of that.
_PING, _PONG, _PONG_BYTES = b"\x89\x04", b"\x8a\x84", 10
# Where websockets' parser rests between two frames.
_BETWEEN_FRAMES = StreamReader.at_eof.__code__


class KeptAlive(WebSocketsSansIOProtocol):
    """Differs from its parent in what a ping and its answer cost, and in how a dead peer's socket ends: at once.

    Idle sockets do nothing else, and almost all that a socket says are pongs.
    """

    drains: bool

    def data_received(self, data: bytes) -> None:
        if not (len(data) == _PONG_BYTES and data.startswith(_PONG) and self._is_answer(data)):
            super().data_received(data)

    def _is_answer(self, data: bytes) -> bool:
        """Whether it is the pong that is waited for; the parser then needn't see it."""
        waiting = self.pending_ping_payload
        if waiting is None or not self._is_between_frames():
            return False
        mask, masked = int.from_bytes(data[2:6]), int.from_bytes(data[6:])
        if (mask ^ masked).to_bytes(4) != waiting:
            return False
        self.handle_pong(Frame(Opcode.PONG, waiting))
        return True

    def _is_between_frames(self) -> bool:
        """Whether the next byte is a frame's first: else these may be in the middle of a message."""
        parser: Any = self.conn.parser
        while (inner := parser.gi_yieldfrom) is not None:
            parser = inner
        return parser.gi_code is _BETWEEN_FRAMES

    def send_keepalive_ping(self) -> None:
        """As the parent's, without a frame that is made and joined again."""
        self.ping_timer = None
        if self.close_sent or self.transport.is_closing():
            return
        self.pending_ping_payload = random.randbytes(4)
        self.ping_sent_at = self.loop.time()
        self.transport.write(_PING + self.pending_ping_payload)
        if self.ping_timeout is not None:
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)

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
