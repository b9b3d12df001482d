"""The end of an attempt: files to the store, the end to SQL in one transaction, then the last event to Redis."""

import re
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import structlog

from epochcast.events import Progress, encode
from epochcast.jobs import JobError, Metrics, Status, TrainingJob
from shared.artifacts import ArtifactStore, ArtifactsUnavailable, sha256_of
from shared.attempt import AttemptRecord, LeaseLost, NewModel, StoredFile
from shared.claims import Claim
from shared.database import DatabaseUnavailable
from shared.event_log import Entry
from shared.gang import MembersAlive
from shared.recovery import Recovery
from shared.rows import progress_message
from shared.settings import Settings
from shared.transitions import MakeEvent, error_message
from worker.job_state import JobState, complete_message
from worker.journal import Journal
from worker.kept_files import stored_files
from worker.outcome import Abandon, Finish, Lost, Outcome, Requeue
from worker.ranks import Ranks
from worker.reports import SavedFile
from worker.shipping import Shipper
from worker.workspace import Workspace

logger = structlog.get_logger(__name__)

Result = TypeVar("Result")

BACKLOG_S = 5.0
LAST_EVENT_S = 600.0
WRITE_S = 60.0
_RETRY_S = 0.5


class Finisher:
    """Writes what was decided. Every method raises LeaseLost when the job is somebody else's by now."""

    def __init__(
        self,
        settings: Settings,
        claim: Claim,
        record: AttemptRecord,
        store: ArtifactStore,
        workspace: Workspace,
        journal: Journal,
        shipper: Shipper,
        state: JobState,
        ranks: Ranks,
    ) -> None:
        self._settings = settings
        self._claim = claim
        self._record = record
        self._store = store
        self._workspace = workspace
        self._journal = journal
        self._shipper = shipper
        self._state = state
        self._ranks = ranks

    def keep_files(self, snapshot: SavedFile | None) -> None:
        """The attempt's raw output becomes an artifact, one for each trainer that said anything; so does `snapshot`."""
        job = self._claim.job
        for file in stored_files(self._store, self._workspace, job, self._ranks, snapshot):
            try:
                self._record.add_artifact(file)
            except DatabaseUnavailable as error:
                logger.warning("a file of the attempt was not kept", key=file.key, error=str(error))

    def upload_model(self, saved: SavedFile) -> NewModel:
        """The model that the trainer saved, in the store. Raises ArtifactsUnavailable after `EPOCHCAST_UPLOAD_S`."""
        job = self._claim.job
        path = saved.path(self._workspace.out)
        if path is None:
            raise ArtifactsUnavailable(f"the trainer's model file {saved.file!r} has vanished")
        name = re.sub(r"[^A-Za-z0-9._-]", "_", path.name)[-100:]
        key = f"jobs/{job.job_id}/models/{job.generation:06d}/{name}"
        deadline = time.monotonic() + self._settings.upload_s
        while True:
            try:
                file = self._stored(path, "model", key)
                return NewModel(file, self.final_metrics(saved), self._lineage())
            except ArtifactsUnavailable as error:
                if time.monotonic() > deadline:
                    raise
                logger.warning("model not uploaded yet", error=str(error))
                time.sleep(1.0)

    def _stored(self, path: Path, kind: str, key: str) -> StoredFile:
        self._store.put(key, path)
        return StoredFile(kind=kind, key=key, bytes=path.stat().st_size, sha256=sha256_of(path))

    def _lineage(self) -> dict[str, object]:
        """Where a model comes from: enough to train it again."""
        job, resumed = self._claim.job, self._state.resumed
        loaded = (one.artifact_id for one in self._claim.checkpoints if (one.epoch, one.step) == resumed)
        return {
            "spec": job.spec.model_dump(mode="json"),
            "recipe": job.spec.recipe,
            "bundle": job.spec.bundle,
            "attempt": job.attempt,
            "host": self._settings.host_name,
            "resumed_from_checkpoint": next(loaded, None),
            "torch": _torch_version(),
        }

    def final_metrics(self, saved: SavedFile | None) -> Metrics:
        """The last report, overlaid by what `save_model` was given."""
        return self._state.job.metrics | (saved.metrics if saved is not None else {})

    def write(self, outcome: Outcome, saved: SavedFile | None, model: NewModel | None, *, stuck: bool) -> None:
        """Takes the outcome to SQL (retried through a short outage) and its event to Redis."""
        match outcome:
            case Abandon():
                raise LeaseLost(f"job {self._claim.job.job_id}")
            case Finish(status=status, error=error):
                self._finish(status, error, saved, model, stuck)
            case Requeue():
                logger.warning("job given back", outcome=outcome.outcome, reason=outcome.reason)
                # The announcer's event of the next generation would fence what is still on its way.
                self._shipper.drain(BACKLOG_S)
                self._retrying(
                    lambda: self._record.requeue(
                        outcome.outcome,
                        outcome.reason,
                        charged=outcome.charged,
                        delay_s=outcome.delay_s,
                        error=outcome.error,
                        hyperparameters=outcome.hyperparameters,
                        quarantine=stuck,
                    )
                )
            case Lost(reason=reason):
                logger.warning("job given back", outcome="lost", reason=reason)
                self._shipper.drain(BACKLOG_S)
                job = self._claim.job
                recovery = Recovery(self._record.database)
                stuck_on = self._settings.host_name if stuck else None
                self._retrying(
                    lambda: recovery.lose(
                        job.job_id, reason, only_expired=False, generation=job.generation, stuck_on=stuck_on
                    )
                )

    def _finish(
        self,
        status: Status,
        error: JobError | None,
        saved: SavedFile | None,
        model: NewModel | None,
        stuck: bool,
    ) -> None:
        state = self._state
        if status is Status.SUCCEEDED:
            state.job = state.job.model_copy(update={"progress": 1.0})
        final = self.final_metrics(saved) if status is Status.SUCCEEDED else None
        make: MakeEvent = progress_message
        if status is Status.SUCCEEDED:
            make = complete_message(final or {})
        elif status is Status.FAILED:
            make = error_message
        job, entry = self._retrying(
            lambda: self._record.finish(
                status,
                seq=self._journal.last_seq + 1,
                prev=self._journal.prev_of(self._journal.last_seq + 1),
                make_event=make,
                lease_s=self._settings.lease_s,
                outcome=str(status),
                reason=error.message if error else None,
                error=error,
                final_metrics=final,
                state=state.stored(),
                model=model,
                quarantine=stuck,
            )
        )
        logger.info("job ended", status=str(status), error=error.message if error else None)
        self._announce(job, entry, status)

    def _announce(self, job: TrainingJob, entry: Entry, status: Status) -> None:
        """Backlog, then the last event; with Redis away for 10 minutes the announcer takes it from here."""
        deadline = time.monotonic() + LAST_EVENT_S
        while not self._shipper.drain(self._settings.heartbeat_s):
            if self._shipper.is_fenced or not self._keep_lease(deadline):
                return
        current: Progress = progress_message(job, entry.id)
        if self._shipper.ship_last(entry, job, encode(current), lambda: self._keep_lease(deadline)):
            self._record.announced(entry, status=status)

    def _keep_lease(self, deadline: float) -> bool:
        """Between tries to ship the last event: keeps the right to. False: give up."""
        if time.monotonic() > deadline:
            return False
        try:
            self._record.heartbeat(self._settings.lease_s)
        except DatabaseUnavailable as error:
            logger.warning("lease not renewed while Redis is away", error=str(error))
        return True

    def _retrying(self, write: Callable[[], Result]) -> Result:
        """Calls `write` through an outage of SQL, and until no host of the attempt is left; after a minute the lease
        decides."""
        deadline = time.monotonic() + WRITE_S
        while True:
            try:
                return write()
            except (DatabaseUnavailable, MembersAlive) as error:
                if time.monotonic() > deadline:
                    raise DatabaseUnavailable(str(error)) from error
                time.sleep(_RETRY_S)


def _torch_version() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
