"""One attempt: its parts put together, taken from the claim to the last written byte, and let go of in order."""

import contextlib
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import structlog

from epochcast.jobs import Status
from shared.artifacts import ArtifactsUnavailable
from shared.attempt import AttemptRecord, LeaseLost, NewModel
from shared.claims import Claim
from shared.counters import Counted, count_apart
from shared.database import Database, DatabaseUnavailable
from shared.queries import Queries
from shared.settings import Settings
from worker.connections import Connections
from worker.finishing import Finisher
from worker.gang import Gang, limits_of
from worker.job_state import JobState
from worker.journal import Journal
from worker.lease import LeaseKeeper
from worker.narrator import Narrator
from worker.outcome import STORE_PAUSE_S, Cut, Ending, Finish, Outcome, Requeue, decide
from worker.recording import Recorder, Uploader
from worker.reports import SavedFile
from worker.requests import Requests
from worker.shard_upload import ShardUploader
from worker.shards import ShardSets
from worker.shipping import Shipper
from worker.site import AttemptFailed, Site
from worker.supervisor import Supervisor
from worker.workspace import checkpoints_folder

logger = structlog.get_logger(__name__)

FLUSH_S = 60.0


class Attempt:
    """Used as a context manager: at its end every thread, process and file of the attempt is gone.

    Raises AttemptFailed when the host could not go on, unless something of the tree may still live: then the lease
    decides.
    """

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
        self._trainer = list(trainer)
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
        job, store = claimed.job, self._connections.store
        self._record = self._new_record(self._connections.database)
        self._requests = Requests()
        closing.callback(self._requests.close)
        self._site = Site(settings, self._connections, claimed, self._requests, closing)
        self._workspace, self._tree, self._ranks = self._site.workspace, self._site.tree, self._site.ranks
        *older, own = claimed.unannounced
        self._journal = Journal(self._workspace.journal, job.generation, job.owner, own.prev)
        closing.callback(self._journal.close)
        self._journal.append(own.type, own.status, own.payload, None)
        self._recorder = Recorder(self._record, self._journal, store, self._requests)
        closing.callback(self._recorder.stop)
        self._shipper = Shipper(
            self._connections.event_log,
            self._journal,
            job,
            older,
            Queries(self._connections.database),
            self._recorder.announced,
            self._requests,
        )
        closing.callback(self._shipper.stop)
        self._state = JobState(job)
        self._narrator = Narrator(self._state, self._journal, self._shipper, self._recorder)
        folder = checkpoints_folder(job)
        self._uploader = Uploader(store, self._recorder, self._requests, folder, settings.upload_s)
        closing.callback(self._uploader.stop)
        self._shard_sets = ShardSets(store, folder, self._recorder.commit, retry_s=settings.upload_s)
        closing.callback(self._shard_sets.end)
        self._shards = ShardUploader(
            store, self._requests, folder, settings.upload_s, self._shard_sets.add, self._shard_sets.is_wanted
        )
        closing.callback(self._shards.stop)
        self._lease = LeaseKeeper(
            self._new_record(self._connections.lease_database), settings, self._requests, self._tree.renew
        )
        closing.callback(self._lease.stop)
        self._gang: Gang | None = None
        if claimed.membership is not None:
            self._gang = Gang(
                self._connections, claimed, self._record, self._narrator, self._requests, self._shards.add_stored
            )
            closing.callback(self._gang.stop)
        self._finisher = Finisher(
            settings,
            claimed,
            self._record,
            store,
            self._workspace,
            self._journal,
            self._shipper,
            self._state,
            self._ranks,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.close()
        if isinstance(error, OSError) and self._site.is_gone():
            raise AttemptFailed(f"the host could not go on: {error}") from error

    def _new_record(self, database: Database) -> AttemptRecord:
        return AttemptRecord(
            database,
            self._claim,
            archive_limit_bytes=int(self._settings.events_archive_mib * 2**20),
            checkpoints_kept=self._settings.checkpoints_kept,
        )

    def run(self) -> None:
        """Raises LeaseLost, DatabaseUnavailable, OSError (this host can't go on)."""
        # The lease first: preparing may take longer than the licence.
        for thread in (self._lease, self._shipper, self._recorder, self._uploader, self._shards):
            thread.start()
        if self._gang is not None:
            self._gang.start()
        began = time.monotonic()
        ending, saved, failed_at = self._supervise()
        if self._gang is not None and ending.cut is not Cut.LEASE_LOST:
            limits = limits_of(self._claim.job.spec, began)
            ending = self._gang.gather(ending, failed_at, self._is_draining, limits)
        self._end(ending, saved)

    def _is_draining(self) -> bool:
        """Whether the agent says so, now that no supervisor's loop hears it."""
        if self._tree.launcher == 0 or self._tree.agent.connection is None:
            return False  # no answer to a start may be waited for here
        packet = self._tree.agent.read()
        return bool(packet and packet.get("drain"))

    def _supervise(self) -> tuple[Ending, SavedFile | None, float]:
        """Starts the trainer and stays with it to its end. With it, the model, and when the first rank failed."""
        before_start = self._site.start(self._trainer, self._licence_until, self._narrator.log)
        if before_start is not None:
            return before_start, None, time.monotonic()
        if self._gang is not None:
            self._gang.begin_with(self._site.resumed_from)
        supervisor = Supervisor(
            self._settings,
            self._claim.job.spec,
            self._workspace,
            self._tree,
            self._ranks.here,
            self._site.socket,
            self._narrator,
            self._uploader,
            self._shards,
            self._requests,
            self._hear_nudge,
            on_cut=self._gang.on_cut if self._gang is not None else None,
            hear=self._gang.deliver if self._gang is not None else None,
        )
        self._note_launcher()
        ending = self._site.judged(supervisor.run())
        self._oom_snapshot = supervisor.oom_snapshot
        return ending, supervisor.model, supervisor.failed_at

    def _hear_nudge(self) -> None:
        self._lease.wake()
        if self._gang is not None:
            self._gang.wake()

    def _note_launcher(self) -> None:
        """Which tree a successor has to look for; without SQL the launcher's licence is what remains."""
        try:
            self._record.record_launcher(self._tree.launcher, self._tree.started)
        except DatabaseUnavailable as error:
            logger.warning("launcher not noted: SQL is away", error=str(error))

    def _end(self, ending: Ending, saved: SavedFile | None) -> None:
        try:
            self._write_end(ending, saved)
        finally:
            # After what matters: SQL may be on its way back only now.
            if ending.is_self_kill:
                count_apart(self._connections.database, Counted.SELF_KILLS)

    def _write_end(self, ending: Ending, saved: SavedFile | None) -> None:
        if ending.cut is Cut.LEASE_LOST:
            raise LeaseLost(f"job {self._claim.job.job_id}")
        self._uploader.finish()
        self._shards.finish()
        self._recorder.stop()
        self._recorder.flush(FLUSH_S)
        if self._record.heartbeat(self._settings.lease_s).stop_requested:
            # Asked so late that the loop had ended: any exit after a stop request is `stopped`.
            self._state.ask_stop()
            ending = ending.stopped()
        outcome = decide(ending, self._claim.job.spec, self._claim.restarts_used)
        if isinstance(outcome, Requeue) and outcome.hyperparameters is not None:
            self._narrator.log("WARNING", f"{outcome.reason}; trying again from the last checkpoint")
            self._recorder.flush(FLUSH_S)
        outcome, model = self._with_model(outcome, saved)
        self._finisher.keep_files(self._oom_snapshot)
        self._lease.stop()
        self._finisher.write(outcome, saved, model, stuck=self._tree.is_stuck)

    def _with_model(self, outcome: Outcome, saved: SavedFile | None) -> tuple[Outcome, NewModel | None]:
        """A job has succeeded only once its model is kept."""
        if saved is None or outcome != Finish(Status.SUCCEEDED):
            return outcome, None
        try:
            return outcome, self._finisher.upload_model(saved)
        except (ArtifactsUnavailable, OSError) as error:
            return Requeue("platform", f"the model could not be stored: {error}", delay_s=STORE_PAUSE_S), None
