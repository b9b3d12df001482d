"""What one subscriber gets: its first message, what it missed, what comes live, the terminal message."""

from api.closes import UNAVAILABLE, Close, Refused, finished
from api.history import History, Page
from api.peer import Send
from api.subscriber import Subscriber
from epochcast.events import EventId, encode
from epochcast.jobs import Status, TrainingJob
from shared.event_log import Entry


class Delivery:
    """The only one who writes to its socket. `run` and `go_on` return how the socket is to be closed; None: they came
    to rest, and somebody else will go on."""

    def __init__(self, subscriber: Subscriber, history: History, send: Send) -> None:
        self._subscriber = subscriber
        self._history = history
        self._send = send
        self._last_sent: Entry | None = None

    async def run(self, record: TrainingJob, after: EventId | None) -> Close | None:
        """`record`: the job as read before the subscriber was attached. `after`: the client's cursor, if it has one.

        The subscriber is attached to the live feed first, so that nothing can happen between replay and live.
        """
        if after is None:
            await self._begin(record)
        else:
            await self._resume(record, after)
        return await self.go_on()

    async def go_on(self) -> Close | None:
        """As `run`, for a subscriber whose cursor stands where its messages have got to."""
        while True:
            if (frame := self._subscriber.outbox.take()) is not None:
                await self._send(frame.id, frame.text)
                if frame.close is not None:
                    return frame.close
            elif self._subscriber.is_behind:
                if (close := await self._catch_up()) is not None:
                    return close
            elif self._subscriber.has_come_to_rest:
                return None
            else:
                await self._subscriber.outbox.changed()

    async def _begin(self, record: TrainingJob) -> None:
        """The state now, as the worker published it or as the record has it, whichever is newer."""
        state = await self._history.state(record.job_id, record)
        if state is None:
            raise Refused(UNAVAILABLE)
        message, payload = state
        if message.status.is_terminal:
            self._subscriber.start_at_end(EventId.parse(message.id))
            return
        self._subscriber.cursor = EventId.parse(message.id)
        await self._send(self._subscriber.cursor, payload.decode())

    async def _resume(self, record: TrainingJob, after: EventId) -> None:
        self._subscriber.cursor = after
        if not record.status.is_terminal:
            known = [EventId.parse(record.last_event_id or "0"), await self._history.last_id(record.job_id)]
            self._subscriber.is_beyond_end = all(last is None or after > last for last in known)

    async def _catch_up(self) -> Close | None:
        """Sends the log from the cursor to its end; then the subscriber is level with it, or the job has ended."""
        subscriber = self._subscriber
        self._last_sent = None
        while True:
            subscriber.begin_read()
            page = await self._history.after(subscriber.job_id, subscriber.cursor)
            if page.resync_at is not None:
                await self._resync(page.resync_at)
            for entry in page.entries:
                await self._send_entry(entry)
            if page.is_end and not subscriber.has_missed:
                if (close := self._ending(page)) is not None:
                    if not subscriber.is_holding:
                        return close
                    continue  # more has come, and it is in the log
                # No await since the last look: a live event is either held or taken.
                if not subscriber.has_missed:
                    subscriber.end_read()
                    return None

    async def _send_entry(self, entry: Entry) -> None:
        self._subscriber.cursor = entry.id
        self._subscriber.is_beyond_end = False
        self._last_sent = entry
        await self._send(entry.id, entry.payload.decode())

    async def _resync(self, at: EventId) -> None:
        """Says that history is missing: the state now, under the id after which the log goes on."""
        state = await self._history.state(self._subscriber.job_id)
        if state is None:
            raise Refused(UNAVAILABLE)
        message = state[0].model_copy(update={"id": str(at), "resync": True})
        self._subscriber.cursor = at
        await self._send(at, encode(message).decode())

    def _ending(self, page: Page) -> Close | None:
        """How the socket closes when the log is read to its end; None: the job goes on.

        An earlier run's terminal message closes nothing, so the record is asked whether it was the job's last.
        """
        last, standing = self._last_sent, page.standing
        if standing is None:  # SQL is away: the stream alone says so
            return finished(Status(last.status)) if last is not None and last.is_terminal else None
        if not standing.is_terminal:
            return None
        if self._subscriber.is_beyond_end:
            # It has waited for news under a cursor that was none of this log's; the end is news.
            self._subscriber.start_at_end(standing.last)
            self._subscriber.has_missed = True
            return None
        return finished(standing.status)
