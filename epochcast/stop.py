"""Where a run stops: alone at its next look, with several ranks all at the same one.

SIGTERM reaches the ranks at different moments, and a rank that ended while another went on would leave that one in a
collective for ever. So they agree, over torch's store, which nothing touches before a stop is asked. A place is the
number of a look: after each batch and each epoch, alike in all ranks.

1. A rank that is asked writes down its place and joins. From now on it writes down its place at every look, and only
   then reads the proposal.
2. The last rank to join proposes to stop at the place after the farthest one, and reads all places again. If none has
   come so far yet, the verdict is to stop; else to go on, and it proposes again, farther away.
3. A rank that comes to a proposed place waits for the verdict. It is being written: nobody waits for training.

Every rank that a stop concerns stops: its place was read as lower after the proposal was written, so at its next look,
which writes first and reads then, it finds the proposal. And none stops without that verdict.
"""

import time
from collections.abc import Callable
from itertools import count

from epochcast.ranks import Ranks, ranks

VERDICT_S = 10.0
# Longer than hosts differ in hearing of a stop (a heartbeat, 10 s), and short enough to still write a checkpoint before
# the supervisor's grace (30 s) is over.
ALONE_S = 20.0
_ALONE_LOOKS = 3
_LOOKS_PER_EPOCH = 2**40
_number = count()  # a second run of the same processes agrees anew


class Stop:
    """The wish to stop, as one rank has heard of it, and the place where it comes true."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._purpose = f"stop/{next(_number)}"
        self._place = 0
        self._wished = False
        self._is_reached = False
        self._talks: Talks | None = None
        self._broken: str | None = None
        self._has_warned = False

    def ask(self) -> None:
        """Notes the wish. For a signal handler: joins at once if it can, because an epoch may have no look inside."""
        if not self._wished:
            self._wished = True
            self._join()

    @property
    def is_reached(self) -> bool:
        """Whether a look has said to stop; for a process alone, whether a stop was asked."""
        return self._wished and (self._is_reached or self._join() is None)

    def look(self, after_epoch: int | None = None) -> bool:
        """Whether to stop here. All ranks look equally often between two ends of epochs."""
        next_place = self._place + 1
        # One assignment: a signal's handler between two would join with a place where nobody looks.
        self._place = next_place if after_epoch is None else max(next_place, _end_of(after_epoch))
        return self._wished and self._stops_here()

    def _stops_here(self) -> bool:
        talks = self._join()
        if self._is_reached or talks is None:
            self._is_reached = True
            return True
        try:
            self._is_reached = talks.stop_at(self._place)
        except RuntimeError as error:  # without the store nobody can agree: a collective will fail, or the grace end
            self._broken = str(error)
        if self._broken is not None:
            self._warn_once(f"The ranks can't agree where to stop, so they go on: {self._broken}")
        elif not self._is_reached and talks.is_unanswered:
            self._warn_once(f"Not all of the {talks.world} ranks have heard of the stop; rank 0 stops alone")
            self._is_reached = True
        return self._is_reached

    def _join(self) -> "Talks | None":
        """None for a process alone, for which nothing is to be agreed."""
        if self._talks is None and (several := ranks(self._purpose)) is not None:
            self._talks = Talks(several)
            try:
                self._talks.join(self._place)
            except RuntimeError as error:
                self._broken = str(error)
        return self._talks

    def _warn_once(self, message: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._warn(message)


def _end_of(epoch: int) -> int:
    """The place of the look after an epoch; those inside the next one follow it."""
    return (epoch + 1) * _LOOKS_PER_EPOCH - 1


class Talks:
    """One rank's part in the agreement."""

    def __init__(self, several: Ranks) -> None:
        self.world = several.world
        self._ranks = several
        self._store = several.store
        self._began = time.monotonic()
        self._looks = 0
        self._is_proposed = False

    @property
    def is_unanswered(self) -> bool:
        """Whether rank 0 has waited long enough for ranks that don't use the SDK, and so will never join.

        A rank inside a collective hears of a signal only after it; by the third look that one was over.
        """
        waited = time.monotonic() - self._began > ALONE_S and self._looks >= _ALONE_LOOKS
        return waited and self._ranks.rank == 0 and not self._is_proposed

    def join(self, place: int) -> None:
        self._write(place)
        if self._store.add("joined", 1) == self.world:
            self._propose()

    def stop_at(self, place: int) -> bool:
        self._looks += 1
        self._write(place)
        if not self._store.check(["proposal"]):
            return False
        self._is_proposed = True
        number, _, target = self._store.get("proposal").decode().partition(" ")
        if place < int(target) or not self._ranks.wait([f"verdict/{number}"], VERDICT_S):
            return False
        # After "go on" the next proposal is farther away, or will itself be told to go on: this place is written down.
        return bool(self._store.get(f"verdict/{number}") == b"stop")

    def _propose(self) -> None:
        for number in count():
            # Steps may be faster than the store: each time farther away.
            target = max(self._places()) + 2**number
            self._store.set("proposal", f"{number} {target}")
            stops = max(self._places()) < target
            self._store.set(f"verdict/{number}", "stop" if stops else "go on")
            if stops:
                return

    def _write(self, place: int) -> None:
        self._store.set(f"place/{self._ranks.rank}", str(place))

    def _places(self) -> list[int]:
        return [int(place) for place in self._store.multi_get([f"place/{rank}" for rank in range(self.world)])]
