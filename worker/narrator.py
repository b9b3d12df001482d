"""The narrator: turns what happens in an attempt into events, on local disk first, then towards Redis and SQL."""

from typing import Protocol

from epochcast.events import Log, Progress, encode
from epochcast.jobs import Status
from worker.job_state import JobState, changes_of
from worker.journal import Journal
from worker.lines import MAX_LINES_PER_S, Level, RateLimit, clean
from worker.recording import Recorder
from worker.reports import Report
from worker.shipping import Shipper


class Voice(Protocol):
    """What a supervisor says of its attempt."""

    state: JobState

    def report(self, report: Report) -> None: ...

    def close_epoch(self) -> None: ...

    def progress(self) -> None: ...

    def log(self, level: Level, line: str) -> None: ...

    def tell_dropped(self) -> None: ...


class Narrator:
    """Owned by the supervisor's loop. Raises OSError when the journal's disk is full."""

    def __init__(self, state: JobState, journal: Journal, shipper: Shipper, recorder: Recorder) -> None:
        self.state = state
        self._journal = journal
        self._shipper = shipper
        self._recorder = recorder
        self._rate = RateLimit()

    def report(self, report: Report) -> None:
        """Takes a report: by step it goes to the history only, by epoch it waits for the rest of its epoch."""
        if report.step is not None:
            self._recorder.add_step(self.state.step_point(report.epoch, report.step, report.metrics))
            return
        if self.state.has_open_epoch and self.state.open_epoch != report.epoch:
            self.close_epoch()
        late = self.state.report(report.epoch, report.metrics, report.non_finite)
        if late is not None:
            self._recorder.add(self.state.stored(), late)

    def close_epoch(self) -> None:
        """The open epoch's reports become its one event."""
        closed = self.state.close_epoch()
        if closed is None:
            return
        point, non_finite = closed
        self._emit(self.state.progress(self._next_id(), non_finite or None))
        self._recorder.add(self.state.stored(), point)

    def progress(self) -> None:
        """The state has changed otherwise (a stop was asked, a checkpoint was resumed)."""
        self.close_epoch()
        self.state.touch()
        self._emit(self.state.progress(self._next_id()))
        self._recorder.add(self.state.stored(), None)

    def log(self, level: Level, line: str) -> None:
        """One log line, unless this second has had its 1,000."""
        self.tell_dropped()
        if self._rate.admits():
            self._emit(self.state.log(self._next_id(), level, clean(line)))

    def tell_dropped(self) -> None:
        dropped = self._rate.take_dropped()
        if dropped:
            line = f"[{dropped} log lines dropped: more than {MAX_LINES_PER_S} in a second; the log file has them]"
            self._emit(self.state.log(self._next_id(), "WARNING", line))

    def _next_id(self) -> str:
        return str(self._journal.id_of(self._journal.last_seq + 1))

    def _emit(self, message: Progress | Log) -> None:
        changes = changes_of(self.state.job) if isinstance(message, Progress) else None
        self._journal.append(message.type, str(Status(message.status)), encode(message), changes)
        self._shipper.wake()
