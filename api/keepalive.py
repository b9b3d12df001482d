"""Pings of a WebSocket, cheap enough for thousands: a peer that doesn't answer is gone within 11 s."""

import random
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Ping:
    """One that was sent. `sent_at`: by the loop's clock."""

    sent_at: float
    payload: bytes = field(default_factory=lambda: random.randbytes(4))

    @property
    def frame(self) -> bytes:
        return _PING + self.payload


def is_answer(data: bytes, payload: bytes) -> bool:
    """Whether these bytes are a client's pong to a ping with that payload, and nothing else."""
    if len(data) != _PONG_BYTES or not data.startswith(_PONG):
        return False
    mask, masked = int.from_bytes(data[2:6]), int.from_bytes(data[6:])
    return (mask ^ masked).to_bytes(4) == payload


class KeptAlive(WebSocketsSansIOProtocol):
    """Differs from its parent in what a ping and its answer cost, and in how a dead peer's socket ends: at once.

    Idle sockets do nothing else, and almost all that a socket says are pongs.
    """

    drains: bool

    def data_received(self, data: bytes) -> None:
        waiting = self.pending_ping_payload
        if waiting is not None and is_answer(data, waiting) and self.is_between_frames():
            self.handle_pong(Frame(Opcode.PONG, waiting))  # which the parser needn't see
        else:
            super().data_received(data)

    @property
    def last_ping(self) -> Ping | None:
        """The one that keeps the socket alive until the next one is due; None while its answer is awaited."""
        if self.ping_timer is None or self.pending_ping_payload is not None or self.ping_interval is None:
            return None
        return Ping(self.ping_timer.when() - self.ping_interval, b"")

    def go_on_from(self, ping: Ping, *, is_answered: bool) -> None:
        """As if it had sent that ping."""
        assert self.ping_interval is not None
        now = self.loop.time()
        if is_answered:
            due = ping.sent_at + self.ping_interval
            self.ping_timer = self.loop.call_later(max(0.0, due - now), self.send_keepalive_ping)
        elif self.ping_timeout is not None:
            self.pending_ping_payload, self.ping_sent_at = ping.payload, ping.sent_at
            due = ping.sent_at + self.ping_timeout
            self.pong_timer = self.loop.call_later(max(0.0, due - now), self.keepalive_timeout)

    def is_between_frames(self) -> bool:
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
