"""The fleet's stream: messages of all jobs that a token may see, without log lines, for dashboards."""

from functools import partial

from api.closes import UNAVAILABLE, Close, Refused
from api.fleet_outbox import FleetOutbox, Frame
from api.history import History, just_before
from api.peer import Send
from api.standing import active, standings
from api.threads import in_thread
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

    def __init__(self, visible_to: str | None, outbox: FleetOutbox) -> None:
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
        frame = Frame(job_id, entry.id, text)
        if entry.is_terminal:
            self.forget(job_id)
            self.outbox.put_end(frame)
        elif entry.type != "log":
            self.outbox.put_state(frame)

    def forget(self, job_id: int) -> None:
        """The job has ended. A late repeat of its end is taken for news, rather than remembering every job for ever."""
        del self.known[job_id]
        self.followed.discard(job_id)
        self.holes.discard(job_id)

    def fall_behind(self) -> None:
        """Something may have been missed: compare with the record."""
        self.is_behind = True
        self.outbox.wake()


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
            if self._is_first:
                for job in await in_thread(self._active_jobs):
                    await self._send_first(job)
            found = await in_thread(partial(active, self._queries.database, self._subscriber.visible_to))
            unknown = [job_id for job_id, standing in found.items() if standing.last > self._known(job_id)]
            for job_id in dict.fromkeys([*unknown, *self._subscriber.holes]):
                self._subscriber.holes.discard(job_id)
                await self._send_state(job_id)
            await self._send_ends(set(found))
        except DatabaseUnavailable:
            if self._is_first:
                raise Refused(UNAVAILABLE) from None
            return  # the next pass tries again
        self._is_first = False

    def _known(self, job_id: int) -> EventId:
        return self._subscriber.known.get(job_id, BEFORE_ALL)

    async def _send_first(self, job: TrainingJob) -> None:
        last = EventId.parse(job.last_event_id or "0")
        if last > self._known(job.job_id):
            self._subscriber.known[job.job_id] = last
            await self._send(last, encode(progress_message(job)).decode())

    async def _send_state(self, job_id: int) -> None:
        """Makes up for messages that weren't heard. An end is left to `_send_ends`."""
        state = await self._history.state(job_id)
        if state is None or state[0].status.is_terminal:
            return
        message = state[0].model_copy(update={"resync": True})
        last = EventId.parse(message.id)
        self._subscriber.known[job_id] = max(last, self._known(job_id))
        await self._send(last, encode(message).decode())

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

    async def _send_end(self, job_id: int, last: EventId) -> None:
        stored = await in_thread(lambda: self._queries.archived(job_id, just_before(last), 1))
        for entry in stored:
            await self._send(entry.id, entry.payload.decode())

    def _active_jobs(self) -> list[TrainingJob]:
        found: list[TrainingJob] = []
        for status in (Status.RUNNING, Status.QUEUED):
            cursor: str | None = None
            while True:
                wanted = JobFilter(status=status, visible_to=self._subscriber.visible_to)
                page = self._queries.jobs(wanted, _PAGE, cursor, positions=False)
                found += page.items
                cursor = page.next_cursor
                if cursor is None:
                    break
        return found
