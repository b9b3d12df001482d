"""The subscribers of one job to whom its next events are written without looking at any of them."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import structlog

from api.burst import Expected
from api.peer import Line
from epochcast.events import EventId

logger = structlog.get_logger(__name__)


class Member(Protocol):
    """Who can be level."""

    def leave(self) -> None:
        """Takes itself out, should it be level, and keeps its place in the log."""


@runtime_checkable
class Resting(Member, Protocol):
    """A member that is its own line."""

    has_written: bool

    @property
    def transport(self) -> asyncio.Transport: ...


Writes = tuple[Callable[[bytes], None], ...]
Owed = tuple["Level", Writes, bytes]


def pay(owed: Iterable[Owed]) -> None:
    """One write after the other, with next to no code of ours in between: what the kernel does for each throws ours out
    of the processor's caches (docs/decisions.md)."""
    for level, writes, frames in owed:
        for write in writes:
            try:
                write(frames)
            except Exception:
                logger.exception("relay: a socket could not be written to")
                level.drop(write)


class Level:
    """Those who have every event up to the newest, nothing waiting before the next one, and a peer that drains.

    What the relay does for each of them is one call of its transport (docs/decisions.md says what that is worth).
    Whoever stops being level has to `leave` before anything else happens to it.
    """

    __slots__ = ("_expected", "_lines", "_writes", "count", "has_written", "resting")

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._lines: dict[Member, Line | Resting] = {}
        # Never changed, only replaced: a write may make its own peer leave. Empty: to be made anew.
        self._writes: Writes = ()
        self.has_written = False
        """Since `note_writes`."""
        self.count = 0
        """How many are level."""
        self.resting = 0
        """How many of them are no subscribers."""

    @property
    def last(self) -> EventId:
        """The cursor of them all."""
        return self._expected.last

    def owe(self, frames: bytes) -> "Owed":
        """What `pay` then writes to all, before anything else happens to any of them; the events that were expected are
        their last ones from now on."""
        self.has_written = True
        return self, self._writes or self._made(), frames

    def join(self, member: Member, line: Line | Resting) -> None:
        """`member` has everything up to the newest event; it sees to it that it leaves when its line stalls."""
        self._lines[member] = line
        self._changed()

    def leave(self, member: Member) -> None:
        del self._lines[member]
        self._changed()

    def settle(self, resting: Resting) -> None:
        """As `join`, for a resting one."""
        self.join(resting, resting)
        self.resting += 1

    def rise(self, resting: Resting) -> None:
        """As `leave`, for a resting one."""
        self.leave(resting)
        self.resting -= 1

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

    def drop(self, write: Callable[[bytes], None]) -> None:
        """Ends a connection that has missed something; its client comes back with its cursor."""
        for member, line in list(self._lines.items()):
            if line.transport.write == write:
                line.transport.abort()
                if not isinstance(line, Resting):
                    line.drains = False
                if member in self._lines:
                    member.leave()

    def _changed(self) -> None:
        self.count = len(self._lines)
        self._writes = ()

    def _made(self) -> Writes:
        self._writes = tuple(line.transport.write for line in self._lines.values())
        return self._writes
