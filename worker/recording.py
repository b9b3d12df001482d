"""The recorder: takes state, history, archive and checkpoints to SQL, at most one transaction a second."""

import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import structlog

from epochcast.jobs import Metrics
from shared.archive import chunk_of
from shared.artifacts import ArtifactStore, ArtifactsUnavailable
from shared.attempt import AttemptRecord, LeaseLost, MetricPoint, ProgressState, StoredFile
from shared.database import DatabaseUnavailable
from shared.event_log import Entry
from worker.journal import Journal
from worker.outcome import Cut
from worker.requests import Requests

logger = structlog.get_logger(__name__)

INTERVAL_S = 1.0
_CHUNK_EVENTS = 2000
_POINTS_KEPT = 100_000


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """A checkpoint that the trainer wrote: complete, on local disk. `loss` as reported last."""

    path: Path
    epoch: int | None
    step: int | None
    sha256: str
    bytes: int
    loss: float | None


class Recorder:
    """One attempt's way to SQL: a thread that the training never waits for."""

    def __init__(self, record: AttemptRecord, journal: Journal, store: ArtifactStore, requests: Requests) -> None:
        self._record = record
        self._journal = journal
        self._store = store
        self._requests = requests
        self._lock = threading.Lock()
        self._state: ProgressState | None = None
        self._points: deque[MetricPoint] = deque(maxlen=_POINTS_KEPT)
        self._commits: deque[StoredFile] = deque()
        self._announced: deque[Entry] = deque()
        self._archived_seq = 1  # the claim's event stands among the transitions
        self._woken = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, state: ProgressState, point: MetricPoint | None) -> None:
        with self._lock:
            self._state = state
            if point is not None:
                self._points.append(point)

    def add_point(self, point: MetricPoint) -> None:
        with self._lock:
            self._points.append(point)

    def announced(self, entry: Entry) -> None:
        """A stored event is in Redis."""
        self._announced.append(entry)

    def commit(self, file: StoredFile) -> None:
        """An uploaded checkpoint: the pointer moves after all reports that came before it are stored."""
        self._commits.append(file)
        self._woken.set()

    def flush(self, timeout_s: float) -> bool:
        """After the loop has ended (`stop`): everything that is left, retried for `timeout_s`. Raises LeaseLost."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._write()
                return True
            except DatabaseUnavailable as error:
                if time.monotonic() > deadline:
                    logger.warning("record not written: SQL is away", error=str(error))
                    return False
                time.sleep(0.5)

    def stop(self) -> None:
        self._ending = True
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ending:
            self._woken.wait(INTERVAL_S)
            self._woken.clear()
            began = time.monotonic()
            try:
                self._write()
            except DatabaseUnavailable as error:
                logger.warning("record waits for SQL", error=str(error))
            except LeaseLost:
                self._requests.ask(Cut.LEASE_LOST)
                return
            # Commits wake the loop, but one transaction a second is what SQL gets.
            if not self._ending:
                time.sleep(max(0.0, min(0.2, INTERVAL_S - (time.monotonic() - began))))

    def _write(self) -> None:
        commits = len(self._commits)  # what is uploaded now was reported before what is taken below
        self._write_batches()
        for _ in range(commits):
            for key in self._record.commit_checkpoint(self._commits[0]):
                self._drop(key)
            self._commits.popleft()
        while self._announced:
            self._record.mark_announced(self._announced[0])
            self._announced.popleft()

    def _write_batches(self) -> None:
        while True:
            with self._lock:
                state, points = self._state, list(self._points)
            last_seq = self._journal.last_seq
            count = min(_CHUNK_EVENTS, last_seq - self._archived_seq)
            records = self._journal.read(self._archived_seq + 1, count) if count > 0 else []
            if state is None and not points and not records:
                return
            chunk = chunk_of([record.entry for record in records]) if records else None
            self._record.record(state, points, chunk)
            with self._lock:
                for _ in points:
                    self._points.popleft()
                if self._state is state:
                    self._state = None
            self._archived_seq += len(records)

    def _drop(self, key: str) -> None:
        """Retention: a file that can't be deleted now costs space, not correctness."""
        try:
            self._store.delete(key)
        except ArtifactsUnavailable as error:
            logger.warning("an old checkpoint could not be deleted", key=key, error=str(error))


class Uploader:
    """Takes checkpoints to the artifact store, newest first matters: one that waits is dropped for a newer one."""

    def __init__(self, store: ArtifactStore, recorder: Recorder, folder: str, upload_s: float) -> None:
        """`folder`: the key prefix of this generation's checkpoints."""
        self._store = store
        self._recorder = recorder
        self._folder = folder
        self._upload_s = upload_s
        self._waiting: LocalCheckpoint | None = None
        self._condition = threading.Condition()
        self._ending = False
        self._busy = False
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="uploader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, checkpoint: LocalCheckpoint) -> None:
        with self._condition:
            superseded, self._waiting = self._waiting, checkpoint
            self._condition.notify_all()
        if superseded is not None:
            superseded.path.unlink(missing_ok=True)

    def stop(self) -> None:
        """Ends at once; `finish` first for what should still be uploaded."""
        with self._condition:
            self._ending = True
            self._condition.notify_all()
        if self._thread.ident is not None:
            self._thread.join(1.0)

    def finish(self) -> None:
        """Waits for the upload under way and the one behind it, `upload_s` at most."""
        with self._condition:
            self._condition.wait_for(lambda: self._waiting is None and not self._busy, self._upload_s)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._ending or self._waiting is not None)
                if self._ending:
                    return
                checkpoint, self._waiting, self._busy = self._waiting, None, True
            if checkpoint is not None:
                self._upload(checkpoint)
            with self._condition:
                self._busy = False
                self._condition.notify_all()

    def _upload(self, checkpoint: LocalCheckpoint) -> None:
        self._count += 1
        key = f"{self._folder}/{self._count:06d}-{checkpoint.path.name}"
        deadline = time.monotonic() + self._upload_s
        while not self._ending:
            try:
                self._store.put(key, checkpoint.path)
                break
            except ArtifactsUnavailable as error:
                logger.warning("checkpoint not uploaded yet", key=key, error=str(error))
                if time.monotonic() > deadline:
                    return
                time.sleep(1.0)
        self._recorder.commit(
            StoredFile(
                kind="checkpoint",
                key=key,
                bytes=checkpoint.bytes,
                sha256=checkpoint.sha256,
                epoch=checkpoint.epoch,
                step=checkpoint.step,
                loss=checkpoint.loss,
            )
        )
        checkpoint.path.unlink(missing_ok=True)


def judged_loss(metrics: Metrics) -> float | None:
    """What decides which checkpoint is the best: val_loss, else the current loss."""
    return metrics.get("val_loss", metrics.get("train_loss", metrics.get("loss")))
