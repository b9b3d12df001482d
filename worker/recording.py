"""The recorder: takes state, history, archive and checkpoints to SQL, at most one transaction a second."""

import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from epochcast.jobs import Metrics
from shared.archive import chunk_of
from shared.artifacts import ArtifactStore, ArtifactsUnavailable
from shared.attempt import AttemptRecord, LeaseLost, MetricPoint, ProgressState, StoredFile
from shared.database import DatabaseUnavailable
from shared.event_log import Entry
from shared.manifest import DamagedManifest, delete_artifact
from worker.journal import Journal
from worker.outcome import Cut
from worker.requests import Requests

logger = structlog.get_logger(__name__)

INTERVAL_S = 1.0
_CHUNK_EVENTS = 2000
_STEPS_KEPT = 20_000
_POINTS_AT_ONCE = 1000


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
        self._points: deque[MetricPoint] = deque()
        # A script may report faster by step than any database writes; then the oldest steps are dropped, epochs never.
        self._steps: deque[MetricPoint] = deque(maxlen=_STEPS_KEPT)
        self._commits: deque[StoredFile] = deque()
        self._announced: deque[Entry] = deque()
        self._archived_seq = 1  # the claim's event stands among the transitions
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, state: ProgressState, point: MetricPoint | None) -> None:
        with self._lock:
            self._state = state
            if point is not None:
                self._points.append(point)

    def add_step(self, point: MetricPoint) -> None:
        with self._lock:
            self._steps.append(point)

    def announced(self, entry: Entry) -> None:
        """A stored event is in Redis."""
        self._announced.append(entry)

    def commit(self, file: StoredFile) -> None:
        """An uploaded checkpoint: the pointer moves after all reports that came before it are stored."""
        self._commits.append(file)

    def flush(self, timeout_s: float) -> None:
        """After the loop has ended (`stop`): writes everything that is left, retried for `timeout_s`.

        Raises DatabaseUnavailable, LeaseLost.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._write()
                return
            except DatabaseUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def stop(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            try:
                self._write()
            except DatabaseUnavailable as error:
                logger.warning("record waits for SQL", error=str(error))
            except LeaseLost:
                self._requests.ask(Cut.LEASE_LOST)
                return
            except Exception:
                # A thread that dies in silence would let the job train on with nothing kept of it.
                logger.exception("the recorder failed")
                self._requests.ask(Cut.PLATFORM)
                return

    def _write(self) -> None:
        """Everything that is there now; what comes meanwhile is the next pass's, so that commits are never put off."""
        commits = len(self._commits)  # what is uploaded now was reported before what is taken below
        last_seq = self._journal.last_seq
        while self._write_batch(last_seq):
            continue
        for _ in range(commits):
            for key in self._record.commit_checkpoint(self._commits[0]):
                self._drop(key)
            self._commits.popleft()
        while self._announced:
            self._record.mark_announced(self._announced[0])
            self._announced.popleft()

    def _write_batch(self, last_seq: int) -> bool:
        """One transaction of bounded size. False: nothing was left."""
        with self._lock:
            state = self._state
            points = _take(self._points, _POINTS_AT_ONCE)
            steps = _take(self._steps, _POINTS_AT_ONCE - len(points))
        count = min(_CHUNK_EVENTS, last_seq - self._archived_seq)
        records = self._journal.read(self._archived_seq + 1, count) if count > 0 else []
        if state is None and not points and not steps and not records:
            return False
        chunk = chunk_of([record.entry for record in records]) if records else None
        try:
            self._record.record(state, [*points, *steps], chunk)
        except BaseException:
            with self._lock:
                self._points.extendleft(reversed(points))
                self._steps.extendleft(reversed(steps[: _STEPS_KEPT - len(self._steps)]))
            raise
        with self._lock:
            if self._state is state:
                self._state = None
        self._archived_seq += len(records)
        return True

    def _drop(self, key: str) -> None:
        """Retention: a file that can't be deleted now costs space, not correctness."""
        try:
            delete_artifact(self._store, key)
        except (ArtifactsUnavailable, DamagedManifest) as error:
            logger.warning("an old checkpoint could not be deleted", key=key, error=str(error))


def _take(queue: deque[MetricPoint], count: int) -> list[MetricPoint]:
    return [queue.popleft() for _ in range(min(count, len(queue)))]


class Uploads(Protocol):
    """Where checkpoints go."""

    def add(self, checkpoint: LocalCheckpoint) -> None: ...


class Uploader:
    """Takes checkpoints to the artifact store, newest first matters: one that waits is dropped for a newer one."""

    def __init__(
        self, store: ArtifactStore, recorder: Recorder, requests: Requests, folder: str, upload_s: float
    ) -> None:
        """`folder`: the key prefix of this generation's checkpoints."""
        self._store = store
        self._recorder = recorder
        self._requests = requests
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
            try:
                if checkpoint is not None:
                    self._upload(checkpoint)
            except Exception:
                logger.exception("the uploader failed")
                self._requests.ask(Cut.PLATFORM)
            with self._condition:
                self._busy = False
                self._condition.notify_all()

    def _upload(self, checkpoint: LocalCheckpoint) -> None:
        self._count += 1
        # Nothing of the trainer's own choosing becomes part of a key.
        key = f"{self._folder}/{self._count:06d}-epoch-{checkpoint.epoch or 0}.pt"
        if not self._put(key, checkpoint.path):
            return
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

    def _put(self, key: str, path: Path) -> bool:
        """Tries until the file is stored. False: it is gone, another one waits, or the time is over."""
        deadline = time.monotonic() + self._upload_s
        while not self._ending:
            try:
                self._store.put(key, path)
                return True
            except ArtifactsUnavailable as error:
                logger.warning("checkpoint not uploaded yet", key=key, error=str(error))
            if not path.exists() or self._waiting is not None or time.monotonic() > deadline:
                return False
            time.sleep(1.0)
        return False


def judged_loss(metrics: Metrics) -> float | None:
    """What decides which checkpoint is the best: val_loss, else the current loss."""
    return metrics.get("val_loss", metrics.get("train_loss", metrics.get("loss")))
