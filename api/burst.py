"""Live events of one job that came in one read from Redis and go out in one write."""

import struct
from functools import cached_property

import structlog

from epochcast.events import EventId
from shared.event_log import Entry, entry_of_feed

logger = structlog.get_logger(__name__)

# Type, status and gap of an event that only follows the one before: it ends nothing, and nothing lacks before it.
_PLAIN = (b"progress running - ", b"log running - ")


class Burst:
    """Events that follow `prev` without a hole, in one generation, none of them the job's last.

    `frames`: all of them as WebSocket text frames, built once for all subscribers.
    """

    __slots__ = ("__dict__", "_feed", "_parts", "last", "prev")

    def __init__(self, prev: EventId) -> None:
        self.prev = self.last = prev
        self._parts: list[bytes] = []
        self._feed: list[bytes] = []

    def add(self, last: EventId, data: bytes, payload: bytes) -> None:
        self.last = last
        self._feed.append(data)
        self._parts += (frame_head(len(payload)), payload)

    @cached_property
    def frames(self) -> bytes:
        return b"".join(self._parts)

    @cached_property
    def messages(self) -> list[tuple[Entry, str]]:
        """One by one, for subscribers that can't take all at once."""
        entries = [entry_of_feed(data) for data in self._feed]
        return [(entry, entry.payload.decode()) for entry in entries]


class Expected:
    """What the next event of a job looks like in its feed, so that most are known without taking them apart.

    Numbers inside a generation are contiguous, so after `2-46` comes `2-47 2-46 …`: one comparison of bytes says that
    an event follows the last one, and an id is never parsed.
    """

    __slots__ = ("_head", "last")

    def __init__(self, last: EventId) -> None:
        self.follow(last)

    def follow(self, last: EventId) -> None:
        """From now on what comes after `last` is expected."""
        self.last = last
        generation, seq = last
        self._head = b"%d-%d %d-%d " % (generation, seq + 1, generation, seq)

    def payload(self, data: bytes) -> bytes | None:
        """The payload of the event that was expected, which is then `last`; None for any other message."""
        head = self._head
        if not (data.startswith(head) and data.startswith(_PLAIN, len(head))):
            return None
        payload = data[data.index(b"\n") + 1 :] if b"\n" in data else None
        if payload is None or not _is_text(payload):
            return None
        self.follow(EventId(self.last[0], self.last[1] + 1))
        return payload


def _is_text(payload: bytes) -> bool:
    if payload.isascii():
        return True
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


def frame_head(length: int) -> bytes:
    """The head of an unmasked text frame with `length` bytes (RFC 6455, section 5.2)."""
    if length < 126:
        return bytes((0x81, length))
    if length < 65536:
        return b"\x81\x7e" + struct.pack("!H", length)
    return b"\x81\x7f" + struct.pack("!Q", length)
