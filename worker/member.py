"""One host's part of an attempt on several, beyond member 0: it runs its ranks, and says what they say to member 0.

It writes its own row and nothing else of the job: events, metrics, checkpoints and the end are member 0's.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import structlog

from epochcast.jobs import JobError
from shared.claims import Claim
from shared.counters import Counted, count_apart
from shared.database import Database, DatabaseUnavailable
from shared.member_record import MemberRecord
from shared.settings import Settings
from worker.connections import Connections
from worker.courier import Courier
from worker.job_state import JobState
from worker.kept_files import stored_files
from worker.lease import LeaseKeeper
from worker.lines import MAX_LINES_PER_S, Level, RateLimit, clean
from worker.outcome import Cut, Ending
from worker.recording import LocalCheckpoint
from worker.reports import Report, SavedFile
from worker.requests import Requests
from worker.shard_upload import ShardUploader
from worker.site import AttemptFailed, Site
from worker.supervisor import Supervisor
from worker.workspace import checkpoints_folder

logger = structlog.get_logger(__name__)

FLUSH_S = 20.0
WRITE_S = 60.0


class MemberVoice:
    """What a narrator is to member 0: lines go to the job's log by way of the courier, rank 0's matters don't arise."""

    def __init__(self, state: JobState, courier: Courier) -> None:
        self.state = state
        self._courier = courier
        self._rate = RateLimit()

    def report(self, report: Report) -> None:
        """Only rank 0's reports become progress."""

    def close_epoch(self) -> None:
        """Epochs are member 0's."""

    def progress(self) -> None:
        """So is what subscribers see of the job."""

    def log(self, level: Level, line: str) -> None:
        self.tell_dropped()
        if self._rate.admits():
            self._courier.log(level, clean(line))

    def tell_dropped(self) -> None:
        dropped = self._rate.take_dropped()
        if dropped:
            line = f"[{dropped} log lines dropped: more than {MAX_LINES_PER_S} in a second; the log file has them]"
            self._courier.log("WARNING", line)


class NoUploads:
    """In place of an uploader: whole checkpoints are rank 0's."""

    def __init__(self, say: Callable[[Level, str], None]) -> None:
        self._say = say

    def add(self, checkpoint: LocalCheckpoint) -> None:
        checkpoint.path.unlink(missing_ok=True)
        self._say("WARNING", f"a checkpoint that isn't rank 0's was not kept: {checkpoint.path.name}")


class Member:
    """Used as a context manager, as an Attempt is: at its end every thread, process and file is gone."""

    def __init__(
        self,
        settings: Settings,
        connections: Connections,
        claimed: Claim,
        licence_until: float,
        trainer: Sequence[str],
    ) -> None:
        self._settings = settings
        self._connections = connections
        self._claim = claimed
        self._licence_until = licence_until
        self._trainer = trainer
        self._oom_snapshot: SavedFile | None = None
        self._closing = contextlib.ExitStack()
        try:
            self._make_parts()
        except BaseException as error:
            self._closing.close()
            if isinstance(error, OSError):
                raise AttemptFailed(f"the attempt could not be prepared: {error}") from error
            raise

    def _make_parts(self) -> None:
        settings, claimed, closing = self._settings, self._claim, self._closing
        self._record = _record_of(self._connections.database, claimed)
        self._requests = Requests()
        closing.callback(self._requests.close)
        self._site = Site(settings, self._connections, claimed, self._requests, closing)
        self._courier = Courier(self._record, self._requests, self._nudge)
        closing.callback(self._courier.stop)
        # Which epoch it is only member 0 knows.
        state = JobState(claimed.job.model_copy(update={"current_epoch": 0}))
        self._voice = MemberVoice(state, self._courier)
        # Which checkpoint a newer one has overtaken only member 0 knows.
        self._shards = ShardUploader(
            self._connections.store,
            self._requests,
            checkpoints_folder(claimed.job),
            settings.upload_s,
            self._courier.shard,
            lambda _: True,
        )
        closing.callback(self._shards.stop)
        self._lease = LeaseKeeper(
            _record_of(self._connections.lease_database, claimed), settings, self._requests, self._site.tree.renew
        )
        closing.callback(self._lease.stop)

    def _nudge(self) -> None:
        self._connections.nudge(self._claim.job.job_id, [self._claim.job.hosts[0].name])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.close()
        if isinstance(error, OSError) and self._site.is_gone():
            raise AttemptFailed(f"the host could not go on: {error}") from error

    def run(self) -> None:
        """Raises LeaseLost, DatabaseUnavailable, OSError (this host can't go on)."""
        self._lease.start()
        self._courier.start()
        self._shards.start()
        ending, failed_at = self._supervise()
        self._end(ending, failed_at)

    def _supervise(self) -> tuple[Ending, float]:
        """Starts this host's ranks and stays with them to their end. With it, when the first of them failed."""
        before_start = self._site.start(self._trainer, self._licence_until, self._voice.log)
        if before_start is not None:
            return before_start, time.monotonic()
        self._courier.begins(self._site.resumed_from)
        supervisor = Supervisor(
            self._settings,
            self._claim.job.spec,
            self._site.workspace,
            self._site.tree,
            self._site.ranks.here,
            self._site.socket,
            self._voice,
            NoUploads(self._voice.log),
            self._shards,
            self._requests,
            self._lease.wake,
            on_cut=self._on_cut,
            awaits_reports=False,
        )
        with contextlib.suppress(DatabaseUnavailable):  # then the launcher's licence is what remains
            self._record.record_launcher(self._site.tree.launcher, self._site.tree.started)
        ending = supervisor.run()
        self._oom_snapshot = supervisor.oom_snapshot
        return ending, supervisor.failed_at

    def _on_cut(self, cut: Cut) -> None:
        if cut is Cut.DRAINED:
            self._courier.drain()

    def _end(self, ending: Ending, failed_at: float) -> None:
        """Everything this host has to say, and only then its end: member 0 waits for that."""
        try:
            self._write_end(ending, failed_at)
        finally:
            if ending.is_self_kill:
                count_apart(self._connections.database, Counted.SELF_KILLS)

    def _write_end(self, ending: Ending, failed_at: float) -> None:
        if ending.cut is not Cut.LEASE_LOST:
            self._shards.finish()
        self._courier.stop()
        outcome, error = how_it_ended(ending)
        if ending.cut is not Cut.LEASE_LOST:
            site, store = self._site, self._connections.store
            for file in stored_files(store, site.workspace, self._claim.job, site.ranks, self._oom_snapshot):
                self._courier.file(file)
            if error is not None:
                self._retrying(lambda: self._courier.fail(error, time.monotonic() - failed_at))
                self._nudge()
            self._courier.flush(FLUSH_S)
        reason = error.message if error is not None else ending.cut_error.message if ending.cut_error else None
        stuck = self._site.tree.is_stuck
        self._retrying(lambda: self._record.end(outcome, reason, ending.exit_code, quarantine=stuck))
        self._lease.stop()
        self._nudge()
        logger.info("member ended", outcome=outcome, reason=reason)

    def _retrying(self, write: Callable[[], None]) -> None:
        """Calls `write` through an outage of SQL; after a minute the lease decides."""
        deadline = time.monotonic() + WRITE_S
        while True:
            try:
                return write()
            except DatabaseUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def how_it_ended(ending: Ending) -> tuple[str, JobError | None]:
    """What the row says: an outcome for member 0 to judge by, and the failure of a rank, if one failed."""
    match ending.cut:
        case None:
            error = ending.failure or ending.exit_error
            return ("failed", error) if error is not None else ("succeeded", None)
        case Cut.STOPPED | Cut.DRAINED | Cut.STORE:
            return ending.cut.value, None
        case Cut.GANG:
            return "killed", ending.failure
        case _:
            return "lost", ending.failure


def run_member(
    settings: Settings, connections: Connections, claimed: Claim, licence_until: float, trainer: Sequence[str]
) -> None:
    """Raises LeaseLost, DatabaseUnavailable."""
    try:
        with Member(settings, connections, claimed, licence_until, trainer) as member:
            member.run()
    except AttemptFailed as error:
        logger.error("this host's part of the attempt is lost", error=str(error))
        # Every process of it is gone, so nobody has to wait for the lease.
        _record_of(connections.database, claimed).end("lost", str(error), None)


def _record_of(database: Database, claimed: Claim) -> MemberRecord:
    assert claimed.membership is not None
    return MemberRecord(database, claimed, claimed.membership)
