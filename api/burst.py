"""Live events of one job that came in one read from Redis and go out in one write."""

import struct
from collections.abc import Sequence
from functools import cached_property, lru_cache

import structlog

from epochcast.events import EventId
from shared.event_log import Entry, entry_of_feed

logger = structlog.get_logger(__name__)


class Burst:
    """Events that follow one another without a hole, in one generation, none of them the job's last."""

    def __init__(self, before: EventId, last: EventId, frames: bytes, feed: Sequence[bytes]) -> None:
        """`before`: what they follow. `frames`: all of them as WebSocket text frames. `feed`: as Redis sent them."""
        self.before = before
        self.last = last
        self.frames = frames
        self._feed = feed

    @cached_property
    def messages(self) -> list[tuple[Entry, str]]:
        """One by one, for subscribers that can't take all at once."""
        entries = [entry_of_feed(data) for data in self._feed]
        return [(entry, entry.payload.decode()) for entry in entries]


def is_text(payload: bytes) -> bool:
    """Whether it is UTF-8."""
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def heard(job_id: int, data: bytes) -> tuple[Entry, str] | None:
    """An event and its text; None for what no event log publishes: whoever has Redis' password can."""
    try:
        entry = entry_of_feed(data)
        return entry, entry.payload.decode()
    except ValueError:
        logger.error("relay: an unreadable message was dropped", job_id=job_id, head=data[:40])
        return None


@lru_cache(maxsize=4096)
def frame_head(length: int) -> bytes:
    """The head of an unmasked text frame with `length` bytes (RFC 6455, section 5.2)."""
    if length < 126:
        return bytes((0x81, length))
    if length < 65536:
        return b"\x81\x7e" + struct.pack("!H", length)
    return b"\x81\x7f" + struct.pack("!Q", length)
