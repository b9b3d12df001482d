"""The job as its supervisor sees it: reports go in, events and snapshots come out."""

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import orjson

from epochcast.events import Complete, EventId, Log, Progress
from epochcast.jobs import Metrics, Status, TrainingJob, loss_of
from shared.attempt import MetricPoint, ProgressState
from shared.rows import progress_message
from worker.lines import Level

RECENT_EPOCHS = 20


class JobState:
    """One attempt's view of its job. Not thread-safe: the supervisor's loop owns it."""

    def __init__(self, job: TrainingJob, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: monotonic seconds, for epoch durations."""
        self.job = job
        self._clock = clock
        self._epoch_began = clock()
        self._knows_begin = False
        self._durations: deque[float] = deque(maxlen=RECENT_EPOCHS)
        self._open_epoch: int | None = None
        self._open_metrics: Metrics = {}
        self._open_non_finite: list[str] = []
        self._emitted_epoch: int | None = None
        self._told_total: int | None = None
        self.resumed: tuple[int | None, int | None] | None = None
        """Epoch and step of the checkpoint that was loaded."""

    @property
    def has_open_epoch(self) -> bool:
        """Whether reports wait to become their epoch's event."""
        return self._open_epoch is not None

    @property
    def open_epoch(self) -> int | None:
        return self._open_epoch

    @property
    def epoch_s(self) -> float | None:
        """Mean duration of the recent epochs, seconds: not their median, as every fifth may validate for longer than it
        trains. The longest counts as the second longest: one that a laptop slept through tells nothing of the others.
        """
        if len(self._durations) < 2:
            return next(iter(self._durations), None)
        *others, _ = sorted(self._durations)
        return fmean([*others, others[-1]])

    def report(self, epoch: int, metrics: Metrics, non_finite: list[str]) -> MetricPoint | None:
        """Takes an epoch's report. Several of one epoch merge into one event.

        Returns the history's point at once when the epoch's event is out already (a late report): one `progress` an
        epoch, so the values reach history and snapshot only.
        """
        if epoch == self._emitted_epoch:
            self.job = self._with_metrics(self.job.metrics | metrics)
            return MetricPoint(epoch, None, dict(self.job.metrics), _now().timestamp())
        self._open_epoch = epoch
        self._open_metrics |= metrics
        self._open_non_finite += [name for name in non_finite if name not in self._open_non_finite]
        return None

    def begin_epoch(self) -> None:
        """The script says that an epoch begins."""
        self._epoch_began = self._clock()
        self._knows_begin = True

    def plan(self, total_epochs: int) -> None:
        """The script says how many epochs it trains: more to the point than what the job was submitted with."""
        self._told_total = total_epochs
        self.job = self.job.model_copy(update={"total_epochs": total_epochs})

    def step_point(self, epoch: int, step: int, metrics: Metrics) -> MetricPoint:
        """A report by step: the history's, never an event."""
        return MetricPoint(epoch, step, metrics, _now().timestamp())

    def close_epoch(self) -> tuple[MetricPoint, list[str]] | None:
        """Ends the open epoch: its state is the job's now. Returns the history's point and the non-finite names."""
        if self._open_epoch is None:
            return None
        epoch, metrics, non_finite = self._open_epoch, self._open_metrics, self._open_non_finite
        self._open_epoch, self._open_metrics, self._open_non_finite = None, {}, []
        now = self._clock()
        # Not the first, unless the script said when it began: imports and data loading stand before it.
        if (self._knows_begin or self._emitted_epoch is not None) and epoch > (self._emitted_epoch or 0):
            self._durations.append(now - self._epoch_began)
        self._epoch_began = now
        self._emitted_epoch = epoch
        total = max(self.job.total_epochs, epoch)
        left = (total - epoch) * self.epoch_s if self.epoch_s is not None else None
        self.job = self._with_metrics(metrics).model_copy(
            update={
                "current_epoch": epoch,
                "total_epochs": total,
                "progress": min(1.0, epoch / total),
                "eta_s": None if left is None else round(left, 1),
                "timestamp": _now(),
            }
        )
        return MetricPoint(epoch, None, metrics, _now().timestamp()), non_finite

    def _with_metrics(self, metrics: Metrics) -> TrainingJob:
        return self.job.model_copy(update={"metrics": metrics, "current_loss": loss_of(metrics)})

    def resume_at(self, epoch: int) -> None:
        """The trainer loaded a checkpoint: epochs up to `epoch` are done."""
        self._emitted_epoch = None
        self._epoch_began = self._clock()
        self.job = self.job.model_copy(
            update={"current_epoch": epoch, "progress": min(1.0, epoch / self.job.total_epochs)}
        )

    @property
    def place(self) -> str:
        """How far it has come, in words."""
        job = self.job
        if not job.current_epoch:
            return "before its first epoch was reported"
        loss = "" if job.current_loss is None else f", loss {job.current_loss:.6g}"
        return f"after epoch {job.current_epoch} of {job.total_epochs}{loss}"

    def ask_stop(self) -> None:
        self.job = self.job.model_copy(update={"stop_requested": True})

    def touch(self) -> None:
        """What is said next is said now."""
        self.job = self.job.model_copy(update={"timestamp": _now()})

    def progress(self, identifier: str, non_finite: list[str] | None = None) -> Progress:
        message = progress_message(self.job, identifier)
        return message.model_copy(update={"non_finite": non_finite}) if non_finite else message

    def log(self, identifier: str, level: Level, line: str) -> Log:
        return Log(
            id=identifier,
            job_id=self.job.job_id,
            status=self.job.status,
            progress=self.job.progress,
            current_epoch=self.job.current_epoch,
            total_epochs=self.job.total_epochs,
            timestamp=_now(),
            level=level,
            message=line,
        )

    def stored(self) -> ProgressState:
        """What SQL keeps of it."""
        job = self.job
        return ProgressState(
            current_epoch=job.current_epoch,
            progress=job.progress,
            current_loss=job.current_loss,
            metrics=job.metrics,
            eta_s=job.eta_s,
            total_epochs=self._told_total,
            resumed_epoch=self.resumed[0] if self.resumed is not None else None,
        )


class Snapshots:
    """Builds what Redis keeps beside the log (`snapshot`, `current`) from a job and the changes in the journal."""

    def __init__(self, job: TrainingJob) -> None:
        self._job: dict[str, Any] = job.model_dump(mode="json")

    def apply(self, changes: dict[str, Any] | None) -> None:
        if changes:
            self._job.update(changes)

    def at(self, identifier: EventId) -> tuple[bytes, bytes]:
        """Snapshot and current message as of the event `identifier`."""
        job = self._job
        job["last_event_id"] = str(identifier)
        current = {
            "type": "progress",
            "id": str(identifier),
            "job_id": job["job_id"],
            "status": job["status"],
            "progress": job["progress"],
            "current_epoch": job["current_epoch"],
            "total_epochs": job["total_epochs"],
            "timestamp": job["timestamp"],
            "current_loss": job["current_loss"],
            "metrics": job["metrics"],
            "eta_s": job["eta_s"],
            "attempt": job["attempt"],
            "stop_requested": job["stop_requested"],
        }
        return orjson.dumps(job), orjson.dumps(current)


CHANGING = (
    "status",
    "progress",
    "current_epoch",
    "total_epochs",
    "current_loss",
    "metrics",
    "eta_s",
    "stop_requested",
    "timestamp",
)


def changes_of(job: TrainingJob) -> dict[str, Any]:
    """The fields that an event of a running attempt may change, ready for JSON."""
    return job.model_dump(mode="json", include=set(CHANGING))


def complete_message(final_metrics: Metrics) -> Callable[[TrainingJob, EventId], Complete]:
    """Makes the `complete` event once SQL has given the model its number."""

    def make(job: TrainingJob, identifier: EventId) -> Complete:
        began, ended = job.started_at, job.finished_at
        return Complete(
            id=str(identifier),
            job_id=job.job_id,
            status=Status.SUCCEEDED,
            progress=job.progress,
            current_epoch=job.current_epoch,
            total_epochs=job.total_epochs,
            timestamp=job.timestamp,
            model_id=job.model_id,
            final_metrics=final_metrics,
            duration_s=round((ended - began).total_seconds(), 3) if began and ended else None,
        )

    return make


def _now() -> datetime:
    return datetime.now(UTC)
