"""The fleet's socket: messages of all jobs that a token may see, without log lines, for dashboards."""

from dataclasses import dataclass
from functools import partial

from api.closes import UNAVAILABLE, Close, Refused
from api.history import History, in_thread, just_before
from api.peer import Send
from api.standing import standings
from api.subscriber import Frame, Outbox
from epochcast.events import BEFORE_ALL, EventId, encode
from epochcast.jobs import Status, TrainingJob
from shared.database import DatabaseUnavailable
from shared.event_log import Entry
from shared.queries import JobFilter, Queries
from shared.rows import progress_message

_PAGE = 200
_MOST_IDS = 500  # in one query


class FleetSubscriber:
    """Takes live events of visible jobs; `known` is the newest event sent or queued of each job that has not ended."""

    def __init__(self, visible_to: str | None, outbox: Outbox) -> None:
        self.visible_to = visible_to
        self.outbox = outbox
        self.known: dict[int, EventId] = {}
        self.followed: set[int] = set()
        """Jobs of which a live event came: from then on a hole can be seen."""
        self.holes: set[int] = set()
        self.is_behind = True

    def offer(self, job_id: int, entry: Entry, text: str) -> None:
        if self.visible_to is not None and entry.owner != self.visible_to:
            return
        before = self.known.get(job_id, BEFORE_ALL)
        if entry.id <= before:
            return
        if entry.gap or (job_id in self.followed and entry.prev > before):
            self.holes.add(job_id)
            self.fall_behind()
        self.known[job_id] = entry.id
        self.followed.add(job_id)
        if entry.is_terminal:
            self.forget(job_id)
        if entry.type != "log":
            self.outbox.put(Frame(entry.id, text))

    def forget(self, job_id: int) -> None:
        """The job has ended. A late repeat of its end is taken for news, rather than remembering every job for ever."""
        del self.known[job_id]
        self.followed.discard(job_id)
        self.holes.discard(job_id)

    def fall_behind(self) -> None:
        """Something may have been missed: compare with the record."""
        self.is_behind = True
        self.outbox.wake()


@dataclass(frozen=True, slots=True)
class _Active:
    """A job that has not ended, as the record has it."""

    job: TrainingJob
    last: EventId


class FleetDelivery:
    """First the state of every job that has not ended; then live; what was missed is made up by states (`resync`)."""

    def __init__(self, subscriber: FleetSubscriber, history: History, queries: Queries, send: Send) -> None:
        self._subscriber = subscriber
        self._history = history
        self._queries = queries
        self._send = send
        self._is_first = True

    async def run(self) -> Close:
        """Ends only by its peer. Raises Refused when the record can't be read at the beginning."""
        while True:
            if (frame := self._subscriber.outbox.take()) is not None:
                await self._send(frame.id, frame.text)
            elif self._subscriber.is_behind:
                self._subscriber.is_behind = False
                await self._compare()
            else:
                await self._subscriber.outbox.changed()

    async def _compare(self) -> None:
        try:
            active = await in_thread(self._active)
            for item in active:
                await self._send_state(item)
            while self._subscriber.holes:
                await self._fill(self._subscriber.holes.pop())
            await self._send_ends({item.job.job_id for item in active})
        except DatabaseUnavailable:
            if self._is_first:
                raise Refused(UNAVAILABLE) from None
            return  # the next pass tries again
        self._is_first = False

    async def _send_state(self, item: _Active) -> None:
        before = self._subscriber.known.get(item.job.job_id)
        if before is not None and item.last <= before:
            return
        self._subscriber.known[item.job.job_id] = item.last
        message = progress_message(item.job)
        if not self._is_first:
            message = message.model_copy(update={"resync": True})
        await self._send(item.last, encode(message).decode())

    async def _send_ends(self, active: set[int]) -> None:
        """Terminal messages of jobs that ended unheard."""
        unsure = [job_id for job_id in self._subscriber.known if job_id not in active]
        for start in range(0, len(unsure), _MOST_IDS):
            some = unsure[start : start + _MOST_IDS]
            record = await in_thread(partial(standings, self._queries.database, some))
            for job_id, standing in record.items():
                if standing.is_terminal and job_id in self._subscriber.known:
                    self._subscriber.forget(job_id)
                    await self._send_end(job_id, standing.last)

    async def _fill(self, job_id: int) -> None:
        state = await self._history.state(job_id)
        if state is not None and not state[0].status.is_terminal:
            message = state[0].model_copy(update={"resync": True})
            await self._send(EventId.parse(message.id), encode(message).decode())

    async def _send_end(self, job_id: int, last: EventId) -> None:
        stored = await in_thread(lambda: self._queries.archived(job_id, just_before(last), 1))
        for entry in stored:
            await self._send(entry.id, entry.payload.decode())

    def _active(self) -> list[_Active]:
        found: list[_Active] = []
        for status in (Status.RUNNING, Status.QUEUED):
            cursor: str | None = None
            while True:
                wanted = JobFilter(status=status, visible_to=self._subscriber.visible_to)
                page = self._queries.jobs(wanted, _PAGE, cursor, positions=False)
                found += [_Active(job, EventId.parse(job.last_event_id or "0")) for job in page.items]
                cursor = page.next_cursor
                if cursor is None:
                    break
        return found
