"""One subscriber's place in its job's event log, and the bounded queue between the relay and its socket."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from api.burst import Burst
from api.closes import SLOW_CONSUMER, Close, finished
from api.history import just_before
from api.level import Level
from api.peer import Line
from epochcast.events import EventId
from epochcast.jobs import Status
from shared.event_log import Entry

# Live events kept while the log is read: more than come during a read, unless its peer is slow.
_HELD_EVENTS = 500
_HELD_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Frame:
    """A message ready to send. `close`: what follows it, when it is the job's last."""

    id: EventId
    text: str
    close: Close | None = None


class Outbox:
    """Messages that wait for the peer to drain; full: the subscriber is a slow consumer."""

    def __init__(self, limit_bytes: int, end: Callable[[Close], None]) -> None:
        self._limit_bytes = limit_bytes
        self._end = end
        self._frames: deque[Frame] = deque()
        self._waiting_bytes = 0
        self._changed = asyncio.Event()
        self.is_idle = False
        """Everything that was put has been written, and whoever writes waits for more."""

    def put(self, frame: Frame) -> None:
        # One message alone always fits, however long.
        if self._frames and self._waiting_bytes + len(frame.text) > self._limit_bytes:
            self._end(SLOW_CONSUMER)
            return
        self._frames.append(frame)
        self._waiting_bytes += len(frame.text)
        self.wake()

    def take(self) -> Frame | None:
        """The oldest message, or None."""
        if not self._frames:
            return None
        frame = self._frames.popleft()
        self._waiting_bytes -= len(frame.text)
        return frame

    def wake(self) -> None:
        self.is_idle = False
        self._changed.set()

    async def changed(self) -> None:
        """Until something was put or `wake` was called; what happened before the call counts."""
        self.is_idle = not self._changed.is_set()
        await self._changed.wait()
        self._changed.clear()


class Subscriber:
    """Takes live events while it is level with the log; otherwise notes that there are some, and reads them itself.

    Nothing here waits: `offer` and `offer_burst` are called by the relay for all that is published. `line`: where
    messages may be written past the queue; None: always through it.
    """

    def __init__(self, job_id: int, outbox: Outbox, line: Line | None = None) -> None:
        self.job_id = job_id
        self.outbox = outbox
        self._line = line
        self._level: Level | None = None
        self._cursor = EventId(0, 0)
        self.is_behind = True
        self.has_missed = False
        """A live event passed by while it was behind, so that the log must be read once more."""
        self._held: list[tuple[Entry, str]] = []
        self._held_bytes = 0
        self.is_beyond_end = False
        """Its cursor is later than anything that is known of the job."""
        self.has_come_to_rest = False

    @property
    def cursor(self) -> EventId:
        """The newest event that was sent or queued."""
        return self._cursor if self._level is None else self._level.last

    @cursor.setter
    def cursor(self, cursor: EventId) -> None:
        self.leave()
        self._cursor = cursor

    @property
    def is_level(self) -> bool:
        """Whether the relay writes to it without asking."""
        return self._level is not None

    @property
    def is_calm(self) -> bool:
        """Whether it has sent what its log has up to its cursor, and waits for what comes live after that."""
        return self.outbox.is_idle and not (self.is_behind or self.has_missed or self.is_beyond_end)

    def leave(self) -> None:
        """It is no longer level, if it was."""
        level, self._level = self._level, None
        if level is not None:
            self._cursor = level.last
            level.leave(self)
            if self._line is not None:
                self._line.stalled = None

    def offer_burst(self, burst: Burst, level: Level) -> None:
        """Live events; written at once while nothing waits to be sent before them and the peer drains, and then it is
        level."""
        line = self._line
        if self.outbox.is_idle and line is not None and line.drains and self._cursor == burst.before:
            self._cursor = burst.last
            line.has_written = True
            line.transport.write(burst.frames)
            if line.drains:  # still
                self._level = level
                line.stalled = self.leave
                level.join(self, line)
            return
        for entry, text in burst.messages:
            self.offer(entry, text)

    def offer(self, entry: Entry, text: str) -> None:
        """A live event."""
        self.leave()
        if self.is_behind:
            self._hold(entry, text)
        elif self._is_known(entry):
            return
        elif entry.gap or entry.prev > self.cursor or entry.id.generation != self.cursor.generation:
            # A hole; or a new generation, whose predecessor is what SQL knew, while the stream may have had more.
            self.fall_behind()
        else:
            self.cursor = entry.id
            self.outbox.put(Frame(entry.id, text, finished(Status(entry.status)) if entry.is_terminal else None))

    def _hold(self, entry: Entry, text: str) -> None:
        self._held_bytes += len(text)
        if self.has_missed or len(self._held) == _HELD_EVENTS or self._held_bytes > _HELD_BYTES:
            self.has_missed = True
        else:
            self._held.append((entry, text))

    @property
    def is_holding(self) -> bool:
        return bool(self._held)

    def begin_read(self) -> None:
        """The log is about to be read from the cursor on: what was published until now is in it."""
        self.has_missed = False
        self._held, self._held_bytes = [], 0

    def end_read(self) -> None:
        """The log was read to its end and nothing missed: what was held meanwhile comes now, as if it came live.

        Without that, whoever joins a job that never pauses would read its log for ever.
        """
        held, self._held = self._held, []
        self.is_behind = False
        for entry, text in held:
            self.offer(entry, text)

    def _is_known(self, entry: Entry) -> bool:
        if entry.id > self.cursor:
            self.is_beyond_end = False
            return False
        if self.is_beyond_end and entry.id < self.cursor:
            # The cursor was none of this log's: what is published now is news, and it follows from here.
            self.is_beyond_end = False
            self.cursor = entry.prev
            return False
        return True

    def fall_behind(self) -> None:
        """From now on live events don't count, until the log was read up to its end."""
        self.leave()
        self.is_behind = True
        self.has_missed = True
        self._held = []
        self.outbox.wake()

    def come_to_rest(self) -> None:
        """Somebody else takes what comes; whoever delivers its messages is to return."""
        self.has_come_to_rest = True
        self.outbox.wake()

    def start_at_end(self, last: EventId) -> None:
        """Puts the cursor before the job's terminal event, which is then the only one to come."""
        self.cursor = just_before(last)
        self.is_beyond_end = False
