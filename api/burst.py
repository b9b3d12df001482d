"""Live events of one job that came in one read from Redis and go out in one write."""

import struct
from functools import lru_cache

import structlog

from epochcast.events import EventId
from shared.event_log import Entry, entry_of_feed

logger = structlog.get_logger(__name__)

# Type, status and gap of an event that only follows the one before: it ends nothing, and nothing lacks before it.
_PLAIN = (b"progress running - ", b"log running - ")


class Burst:
    """Events that follow one another without a hole, in one generation, none of them the job's last."""

    __slots__ = ("_feed", "_frames", "_messages")

    def __init__(self) -> None:
        self._feed: list[bytes] = []
        self._frames: list[bytes] = []
        self._messages: list[tuple[Entry, str]] | None = None

    @property
    def count(self) -> int:
        return len(self._feed)

    def add(self, data: bytes, payload: bytes) -> bool:
        """Whether it is the first."""
        feed = self._feed
        feed.append(data)
        self._frames.append(frame_head(len(payload)) + payload)
        return len(feed) == 1

    def frames(self) -> bytes:
        """All of them as WebSocket text frames, for all subscribers; empty when there are none."""
        frames = self._frames
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def messages(self) -> list[tuple[Entry, str]]:
        """One by one, for subscribers that can't take all at once."""
        if self._messages is None:
            entries = [entry_of_feed(data) for data in self._feed]
            self._messages = [(entry, entry.payload.decode()) for entry in entries]
        return self._messages

    def clear(self) -> None:
        """Begins a new one: most are of one event, and new lists for each would cost more than that event."""
        self._frames.clear()
        self._feed.clear()
        self._messages = None


class Expected:
    """What the next event of a job looks like in its feed, so that most are known without taking them apart.

    Numbers inside a generation are contiguous, so after `2-46` comes `2-47 2-46 …`: one comparison of bytes says that
    an event follows the last one, and an id is never parsed.
    """

    __slots__ = ("_generation", "_head", "_next", "_seq")

    def __init__(self, last: EventId) -> None:
        self.follow(last)

    @property
    def last(self) -> EventId:
        """The newest event."""
        return EventId(self._generation, self._seq)

    def before(self, count: int) -> EventId:
        """The one that came `count` expected events before the newest."""
        return EventId(self._generation, self._seq - count)

    def follow(self, last: EventId) -> None:
        """From now on what comes after `last` is expected."""
        self._generation, self._seq = last
        self._next = b"%d-%d" % (last[0], last[1] + 1)
        self._head = b"%b %d-%d " % (self._next, *last)

    def payload(self, data: bytes) -> bytes | None:
        """The payload of the event that was expected, which is then `last`; None for any other message."""
        head = self._head
        if not (data.startswith(head) and data.startswith(_PLAIN, len(head))):
            return None
        payload = data.partition(b"\n")[2]
        if not payload or not (payload.isascii() or is_text(payload)):
            return None
        # As `follow`, with what is there already: the id that was the next one is now the one before.
        seq = self._seq = self._seq + 1
        following = b"%d-%d" % (self._generation, seq + 1)
        self._head, self._next = b" ".join((following, self._next, b"")), following
        return payload


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
