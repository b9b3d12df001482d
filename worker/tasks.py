"""The work behind the Celery task `train(job_id)`: claims a placed job, runs one attempt of it, writes how it ended."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import redis
import structlog

from epochcast.jobs import JobError, Status
from shared.artifacts import ArtifactStore, ArtifactsUnavailable
from shared.attempt import AttemptRecord, Claim, LeaseLost, NewModel, ProcessIdentity, claim
from shared.database import Database, DatabaseUnavailable
from shared.event_log import EventLog
from shared.settings import Settings
from worker import gpus
from worker.agent_line import AgentUnavailable
from worker.attempt_socket import AttemptSocket
from worker.finishing import Finisher
from worker.guard import CHECKOUT
from worker.job_state import JobState
from worker.journal import Journal
from worker.lease import LeaseKeeper
from worker.narrator import Narrator
from worker.outcome import Cut, Ending, Finish, Lost, Outcome, decide
from worker.predecessor import end_leftovers
from worker.process_tree import boot_id, boottime_s, pid_namespace, start_time
from worker.recording import Recorder, Uploader
from worker.reports import SavedFile
from worker.requests import Requests
from worker.shipping import Shipper
from worker.slots import threads_per_job
from worker.supervisor import Supervisor
from worker.tree import Tree
from worker.workspace import fetch_checkpoints, make_workspace, trainer_environment, write_job_file

logger = structlog.get_logger(__name__)

START_S = 30.0
FLUSH_S = 60.0
TRAINER = (sys.executable, "-m", "worker.trainer")


@dataclass(frozen=True, slots=True)
class Connections:
    """Opened in the task: a pool child that was forked with open connections hung on its first query."""

    database: Database
    lease_database: Database
    event_log: EventLog
    store: ArtifactStore


def train(settings: Settings, job_id: int, trainer: Sequence[str] = TRAINER) -> None:
    """One attempt of a job that is placed on this host; returns at once when somebody else has it.

    `trainer`: the command of the attempt's first process. How an attempt ends is written to SQL; what can't be written
    there, the lease takes back.
    """
    with structlog.contextvars.bound_contextvars(job_id=job_id), _connections(settings) as connections:
        claimed_at = boottime_s()
        threads = threads_per_job(settings)
        try:
            claimed = claim(connections.database, job_id, settings.host_name, settings.lease_s, threads, _identity())
        except DatabaseUnavailable as error:
            logger.warning("job not claimed: SQL is away; it is poked again", error=str(error))
            return
        if claimed is None:
            logger.info("nothing to claim: the job is taken, stopped or placed elsewhere")
            return
        logger.info("job claimed", attempt=claimed.job.attempt, generation=claimed.job.generation)
        try:
            _Attempt(settings, connections, claimed, claimed_at + settings.licence_s, trainer).run()
        except LeaseLost:
            logger.warning("lease lost: nothing more is written")
        except DatabaseUnavailable as error:
            logger.error("the attempt's end could not be written; its lease gives the job back", error=str(error))


@contextlib.contextmanager
def _connections(settings: Settings) -> Iterator[Connections]:
    url = settings.database_url.get_secret_value()
    database, lease_database = Database(url, connections=3), Database(url, connections=1)
    client = redis.Redis.from_url(settings.events_redis_url, socket_timeout=5, socket_connect_timeout=3)
    event_log = EventLog(client, kept_per_job=settings.events_kept_per_job, kept_s=settings.events_kept_s)
    try:
        yield Connections(database, lease_database, event_log, ArtifactStore(settings.artifacts_url))
    finally:
        client.close()
        database.close()
        lease_database.close()


def _identity() -> ProcessIdentity:
    pid = os.getpid()
    return ProcessIdentity(boot_id(), pid_namespace(), pid, start_time(pid) or 0)


class _Attempt:
    """The parts of one attempt, put together; `run` takes it from the claim to its end."""

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
        job, store = claimed.job, connections.store
        self._record = self._new_record(connections.database)
        self._requests = Requests()
        self._workspace = make_workspace(settings, claimed)
        self._socket = AttemptSocket(self._workspace.root)
        self._tree = Tree(settings.work_dir, job.job_id)
        *older, own = claimed.unannounced
        self._journal = Journal(self._workspace.journal, job.generation, job.owner, own.prev)
        self._journal.append(own.type, own.status, own.payload, None)
        self._recorder = Recorder(self._record, self._journal, store, self._requests)
        self._shipper = Shipper(
            connections.event_log, self._journal, job, older, self._recorder.announced, self._requests
        )
        self._state = JobState(job)
        self._narrator = Narrator(self._state, self._journal, self._shipper, self._recorder)
        folder = f"jobs/{job.job_id}/checkpoints/{job.generation:06d}"
        self._uploader = Uploader(store, self._recorder, folder, settings.upload_s)
        self._lease = LeaseKeeper(
            self._new_record(connections.lease_database), settings, self._requests, self._tree.renew
        )
        self._finisher = Finisher(
            settings, claimed, self._record, store, self._workspace, self._journal, self._shipper, self._state
        )

    def _new_record(self, database: Database) -> AttemptRecord:
        return AttemptRecord(
            database,
            self._claim,
            archive_limit_bytes=int(self._settings.events_archive_mib * 2**20),
            checkpoints_kept=self._settings.checkpoints_kept,
        )

    def run(self) -> None:
        """Raises LeaseLost, DatabaseUnavailable."""
        for thread in (self._shipper, self._recorder, self._uploader):
            thread.start()
        try:
            ending, saved = self._supervise()
            self._end(ending, saved)
        finally:
            for part in (self._lease, self._uploader, self._recorder, self._shipper):
                part.stop()
            self._tree.close()
            self._socket.close()
            self._journal.close()
            self._workspace.remove()
            self._requests.close()

    def _supervise(self) -> tuple[Ending, SavedFile | None]:
        """Starts the trainer and stays with it to its end."""
        try:
            self._start()
        except AgentUnavailable as error:
            return self._not_started(str(error)), None
        except gpus.GpuBusy as error:
            return self._not_started(str(error)), None
        except OSError as error:
            return self._not_started(f"the attempt's folder could not be prepared: {error}"), None
        self._lease.start()
        supervisor = Supervisor(
            self._settings,
            self._claim.job.spec,
            self._workspace,
            self._tree,
            self._socket,
            self._narrator,
            self._uploader,
            self._requests,
            self._lease.wake,
        )
        return supervisor.run(), supervisor.model

    def _start(self) -> None:
        job, settings = self._claim.job, self._settings
        if not end_leftovers(self._connections.database, job.job_id, settings.host_name, job.generation):
            raise AgentUnavailable("an earlier attempt's processes on this host would not end")
        gpus.wait_free(self._claim.gpus, job.spec.resources.gpu_memory_gib)
        checkpoints, complaints = fetch_checkpoints(self._workspace, self._claim, self._connections.store)
        for complaint in complaints:
            self._narrator.log("WARNING", complaint)
        job_file = write_job_file(self._workspace, job, checkpoints)
        env = trainer_environment(self._workspace, self._claim, self._socket.path, job_file, CHECKOUT)
        self._tree.start(self._trainer, self._workspace.work, env, self._licence_until, START_S)
        self._record.record_launcher(self._tree.launcher, self._tree.started)

    def _not_started(self, why: str) -> Ending:
        error = JobError(type="platform", message=f"the trainer could not be started: {why}")
        return Ending(None, Cut.PLATFORM, error, None, None, finished_all_epochs=False)

    def _end(self, ending: Ending, saved: SavedFile | None) -> None:
        outcome = decide(ending, self._claim.job.spec, self._claim.restarts_used)
        if ending.cut is not Cut.LEASE_LOST:
            self._uploader.finish()
            self._recorder.stop()
            self._recorder.flush(FLUSH_S)
        outcome, model = self._with_model(outcome, saved)
        if ending.cut is not Cut.LEASE_LOST:
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
            return Lost(f"the model could not be stored: {error}"), None
