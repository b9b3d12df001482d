"""The subscribers of one job to whom its next events are written without looking at any of them."""

import asyncio
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from api.burst import frame_head, is_text
from api.fan_out import Connected, Fan, fan
from api.peer import Line
from epochcast.events import BEFORE_ALL, EventId


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


Owed = tuple[Fan, bytes]


def pay(owed: Iterable[Owed]) -> None:
    """One write after the other, with next to no code of ours in between: what the kernel does for each throws ours out
    of the processor's caches (docs/decisions.md)."""
    for all_of_a_level, frames in owed:
        all_of_a_level.write(frames)


class Level:
    """Those who have every event up to the newest, nothing waiting before the next one, and a peer that drains.

    What the relay does for all of them is one call (`api/fan_out.py`; docs/decisions.md says what that is worth).
    Whoever stops being level has to `leave` before anything else happens to it.
    """

    __slots__ = ("_fan", "_form", "_generation", "_lines", "_next", "_seq", "count", "has_written", "resting")

    def __init__(self) -> None:
        self.follow(BEFORE_ALL)
        self._lines: dict[Member, Line | Resting] = {}
        self._fan: Fan | None = None
        """None: to be made anew."""
        self.has_written = False
        """Since `note_writes`."""
        self.count = 0
        """How many are level."""
        self.resting = 0
        """How many of them are no subscribers."""

    # --- the newest event

    @property
    def last(self) -> EventId:
        """The newest event: the cursor of them all."""
        return EventId(self._generation, self._seq)

    def before(self, count: int) -> EventId:
        """The one that came `count` plain events before the newest."""
        return EventId(self._generation, self._seq - count)

    def follow(self, last: EventId) -> None:
        """From now on what comes after `last` is the next one."""
        self._generation, self._seq = last
        self._form = b"%d-%%d" % self._generation
        self._next = self._form % (self._seq + 1)

    def take(self, data: bytes) -> bytes | None:
        """The next event, which is the newest from then on, as a text frame; None for one that is not the next or not
        plain.

        Numbers inside a generation are contiguous, so after `2-46` comes `2-47`: one comparison of bytes says that an
        event follows the last one, and no id is ever parsed.
        """
        try:
            identifier, _, payload = data.split(b"\n", 2)
        except ValueError:
            return None
        if identifier != self._next or not (payload.isascii() or is_text(payload)):
            return None
        self._seq = seq = self._seq + 1
        self._next = self._form % (seq + 1)
        return frame_head(len(payload)) + payload

    # --- who has it

    def owe(self, frames: bytes, owed: list[Owed]) -> None:
        """Puts to what is owed what `pay` then writes to all, before anything else happens to any of them."""
        self.has_written = True
        owed.append((self._fan or self._made(), frames))

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

    def _changed(self) -> None:
        self.count = len(self._lines)
        self._fan = None

    def _made(self) -> Fan:
        self._fan = fan(tuple(self._lines.values()), self._drop)
        return self._fan

    def _drop(self, line: Connected) -> None:
        """Ends a connection that has missed something; its client comes back with its cursor."""
        line.transport.abort()
        for member, other in list(self._lines.items()):
            if other is line:
                if not isinstance(other, Resting):
                    other.drains = False
                if member in self._lines:
                    member.leave()
