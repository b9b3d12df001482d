"""One attempt: its parts put together, taken from the claim to the last written byte, and let go of in order."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from epochcast.jobs import JobError, Status
from shared.artifacts import ArtifactStore, ArtifactsUnavailable
from shared.attempt import AttemptRecord, LeaseLost, NewModel
from shared.claims import Claim
from shared.database import Database, DatabaseUnavailable
from shared.event_log import EventLog
from shared.queries import Queries
from shared.settings import Settings
from worker import gpus
from worker.agent_line import AgentDraining, AgentUnavailable
from worker.attempt_socket import AttemptSocket
from worker.bundles import CodeRejected, place_bundle
from worker.finishing import Finisher
from worker.job_state import JobState
from worker.journal import Journal
from worker.lease import LeaseKeeper
from worker.narrator import Narrator
from worker.outcome import STORE_PAUSE_S, Cut, Ending, Finish, Outcome, Requeue, decide
from worker.predecessor import end_leftovers
from worker.ranks import LOOPBACK, Ranks, free_port
from worker.recording import Recorder, Uploader
from worker.reports import SavedFile
from worker.requests import Requests
from worker.shipping import Shipper
from worker.supervisor import Supervisor
from worker.tree import Tree
from worker.warm_start import starts_warm
from worker.workspace import fetch_checkpoints, make_workspace, trainer_environment, write_job_file

logger = structlog.get_logger(__name__)

START_S = 30.0
FLUSH_S = 60.0
GONE_S = 10.0


class AttemptFailed(Exception):
    """Raised when this host could not go on with an attempt (disk full, no descriptors) and its tree is gone."""


@dataclass(frozen=True, slots=True)
class Connections:
    """Opened in the task: a pool child that was forked with open connections hung on its first query."""

    database: Database
    lease_database: Database
    event_log: EventLog
    store: ArtifactStore


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
        self._workspace = make_workspace(settings, claimed)
        closing.callback(self._workspace.remove)
        self._socket = AttemptSocket(self._workspace.root)
        closing.callback(self._socket.close)
        *older, own = claimed.unannounced
        self._journal = Journal(self._workspace.journal, job.generation, job.owner, own.prev)
        closing.callback(self._journal.close)
        self._journal.append(own.type, own.status, own.payload, None)
        self._ranks = Ranks.of(job.spec.resources)
        self._tree = Tree(settings.work_dir, job.job_id, self._ranks)
        closing.callback(self._tree.close)
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
        folder = f"jobs/{job.job_id}/checkpoints/{job.generation:06d}"
        self._uploader = Uploader(store, self._recorder, self._requests, folder, settings.upload_s)
        closing.callback(self._uploader.stop)
        self._lease = LeaseKeeper(
            self._new_record(self._connections.lease_database), settings, self._requests, self._tree.renew
        )
        closing.callback(self._lease.stop)
        self._finisher = Finisher(
            settings,
            claimed,
            self._record,
            store,
            self._workspace,
            self._journal,
            self._shipper,
            self._state,
            self._ranks.here,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.close()
        if isinstance(error, OSError) and self._is_gone():
            raise AttemptFailed(f"the host could not go on: {error}") from error

    def _is_gone(self) -> bool:
        """Whether the tree's end could be seen: its launcher ends it when the lifeline closes."""
        deadline = time.monotonic() + GONE_S
        while self._tree.launcher_is_alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

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
        for thread in (self._lease, self._shipper, self._recorder, self._uploader):
            thread.start()
        ending, saved = self._supervise()
        self._end(ending, saved)

    def _supervise(self) -> tuple[Ending, SavedFile | None]:
        """Starts the trainer and stays with it to its end."""
        try:
            self._start()
        except AgentDraining:
            return Ending.before_start(Cut.DRAINED), None
        except ArtifactsUnavailable as error:
            return Ending.before_start(Cut.STORE, str(error)), None
        except CodeRejected as error:
            failure = JobError(type="code_rejected", message=str(error), host=self._settings.host_name)
            return Ending(None, None, None, failure, None, finished_all_epochs=False), None
        except (AgentUnavailable, gpus.GpuBusy) as error:
            return Ending.before_start(Cut.PLATFORM, f"the trainer could not be started: {error}"), None
        supervisor = Supervisor(
            self._settings,
            self._claim.job.spec,
            self._workspace,
            self._tree,
            self._ranks.here,
            self._socket,
            self._narrator,
            self._uploader,
            self._requests,
            self._lease.wake,
        )
        self._note_launcher()
        return supervisor.run(), supervisor.model

    def _start(self) -> None:
        job, settings = self._claim.job, self._settings
        if not end_leftovers(self._connections.database, job.job_id, settings.host_name, job.generation):
            raise AgentUnavailable("an earlier attempt's processes on this host would not end")
        gpus.wait_free(self._claim.gpus, job.spec.resources.gpu_memory_gib)
        if job.spec.bundle is not None:
            place_bundle(job.spec.bundle, self._connections.store, settings.work_dir, self._workspace.work)
        checkpoints, complaints = fetch_checkpoints(self._workspace, self._claim, self._connections.store)
        for complaint in complaints:
            self._narrator.log("WARNING", complaint)
        job_file = write_job_file(self._workspace, job, checkpoints)
        ranks = self._ranks.meeting_at(LOOPBACK, free_port()) if self._ranks.ranked else self._ranks
        env = trainer_environment(self._workspace, self._claim, self._socket.path, job_file, ranks)
        if self._requests.has(Cut.LEASE_LOST):
            raise LeaseLost(f"job {job.job_id}: while it was prepared")
        warm = starts_warm(self._trainer, job.spec, self._workspace.work)
        self._tree.start(self._trainer, self._workspace.work, env, self._licence_until, START_S, warm=warm)

    def _note_launcher(self) -> None:
        """Which tree a successor has to look for; without SQL the launcher's licence is what remains."""
        try:
            self._record.record_launcher(self._tree.launcher, self._tree.started)
        except DatabaseUnavailable as error:
            logger.warning("launcher not noted: SQL is away", error=str(error))

    def _end(self, ending: Ending, saved: SavedFile | None) -> None:
        if ending.cut is Cut.LEASE_LOST:
            raise LeaseLost(f"job {self._claim.job.job_id}")
        self._uploader.finish()
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
        self._finisher.keep_log()
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
