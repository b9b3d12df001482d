"""The subscribers of one job to whom its next events are written without looking at any of them."""

from collections.abc import Callable
from typing import Protocol

from api.burst import Expected
from api.peer import Line
from epochcast.events import EventId


class Member(Protocol):
    """Who can be level."""

    def leave(self) -> None:
        """Takes itself out, should it be level, and keeps its place in the log."""


class Level:
    """Those who have every event up to the newest, nothing waiting before the next one, and a peer that drains.

    What the relay does for each of them is one call of its transport (docs/decisions.md says what that is worth).
    Whoever stops being level has to `leave` before anything else happens to it.
    """

    __slots__ = ("_expected", "_lines", "_writes", "has_written")

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._lines: dict[Member, Line] = {}
        # Never changed, only replaced: a write may make its own peer leave. Empty: to be made anew.
        self._writes: tuple[Callable[[bytes], None], ...] = ()
        self.has_written = False
        """Since `note_writes`."""

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def last(self) -> EventId:
        """The cursor of them all."""
        return self._expected.last

    def write(self, frames: bytes) -> None:
        """To all; the events that were expected are then their last ones."""
        self.has_written = True
        for write in self._writes or self._made():
            write(frames)

    def join(self, member: Member, line: Line) -> None:
        """`member` has everything up to the newest event."""
        self._lines[member] = line
        line.stalled = member.leave
        self._writes = ()

    def leave(self, member: Member) -> None:
        self._lines.pop(member).stalled = None
        self._writes = ()

    def dissolve(self) -> None:
        """What comes next is for each of them to look at."""
        for member in list(self._lines):
            member.leave()

    def note_writes(self) -> None:
        """Tells their lines what went out since the last time: that keeps a peer from being called idle."""
        if self.has_written:
            self.has_written = False
            for line in self._lines.values():
                line.has_written = True

    def _made(self) -> tuple[Callable[[bytes], None], ...]:
        self._writes = tuple(line.transport.write for line in self._lines.values())
        return self._writes
