"""Messages of many jobs that wait for one peer: while it is slow, a job's newer state takes the place of its older."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from api.closes import SLOW_CONSUMER, Close
from epochcast.events import EventId


@dataclass(frozen=True, slots=True)
class Frame:
    """A message of one job, ready to send."""

    job_id: int
    id: EventId
    text: str


class FleetOutbox:
    """A peer that keeps up gets every message. One that doesn't gets fewer states, and still every end of a job."""

    def __init__(self, conflate_bytes: int, limit_bytes: int, end: Callable[[Close], None]) -> None:
        self._conflate_bytes = conflate_bytes
        self._limit_bytes = limit_bytes
        self._end = end
        self._numbers = count()
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._states: dict[int, int] = {}
        """By job, the number of its newest waiting state, after which none of its ends waits."""
        self._waiting_bytes = 0
        self._lasting_bytes = 0
        """Of those that no later message may replace."""
        self._changed = asyncio.Event()

    def put_state(self, frame: Frame) -> None:
        number = self._states.get(frame.job_id)
        if number is not None and self._waiting_bytes > self._conflate_bytes:
            # In the older one's turn: jobs that report often must not keep to the end of the queue for ever.
            self._waiting_bytes += len(frame.text) - len(self._frames[number].text)
            self._frames[number] = frame
            return
        if number is not None:
            self._lasting_bytes += len(self._frames[number].text)
        self._states[frame.job_id] = self._append(frame)

    def put_end(self, frame: Frame) -> None:
        """The job's terminal message. What follows it is another run, whose states must not come before."""
        number = self._states.pop(frame.job_id, None)
        if number is not None and self._waiting_bytes > self._conflate_bytes:
            self._waiting_bytes -= len(self._frames.pop(number).text)
        elif number is not None:
            self._lasting_bytes += len(self._frames[number].text)
        # States are as many as there are jobs; these alone can grow without end.
        self._lasting_bytes += len(frame.text)
        if self._lasting_bytes > self._limit_bytes:
            self._end(SLOW_CONSUMER)
            return
        self._append(frame)

    def _append(self, frame: Frame) -> int:
        number = next(self._numbers)
        self._frames[number] = frame
        self._waiting_bytes += len(frame.text)
        self._changed.set()
        return number

    def take(self) -> Frame | None:
        """The oldest message, or None."""
        if not self._frames:
            return None
        number, frame = self._frames.popitem(last=False)
        self._waiting_bytes -= len(frame.text)
        if self._states.get(frame.job_id) == number:
            del self._states[frame.job_id]
        else:
            self._lasting_bytes -= len(frame.text)
        return frame

    def wake(self) -> None:
        self._changed.set()

    async def changed(self) -> None:
        """Until something was put or `wake` was called; what happened before the call counts."""
        await self._changed.wait()
        self._changed.clear()
