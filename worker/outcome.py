"""How an attempt ended, and what follows from it: one table from facts to the job's next state."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from epochcast.jobs import JobError, Status, TrainingJobSpec
from shared.micro_batch import MicroBatch

RETRY_FIRST_S, RETRY_LIMIT_S = 5.0, 300.0
# A store that is away is nobody's fault and may take its time to come back.
STORE_PAUSE_S = 30.0
_CHARGED = ("host_oom", "user_error", "environment")


class Cut(StrEnum):
    """Why the supervisor ended a tree that had not ended by itself."""

    STOPPED = "stopped"
    DRAINED = "drained"
    LEASE_LOST = "lease_lost"
    LICENCE = "licence"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    DIVERGED = "diverged"
    PLATFORM = "platform"
    STORE = "store"
    GANG = "gang"
    """Another host's part of the attempt has ended; what it says decides."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The facts once the last process is gone. `failure`: what the first rank to fail said of itself."""

    exit_code: int | None
    cut: Cut | None
    cut_error: JobError | None
    failure: JobError | None
    exit_error: JobError | None
    finished_all_epochs: bool

    @property
    def why(self) -> str:
        """The platform's reason to end it."""
        return self.cut_error.message if self.cut_error else "the attempt's processes were lost"

    @property
    def is_self_kill(self) -> bool:
        """Its own side ended it because it was no longer sure to be the only one that trains."""
        return self.cut in (Cut.LICENCE, Cut.LEASE_LOST)

    @classmethod
    def before_start(cls, cut: Cut, why: str | None = None) -> "Ending":
        """Nothing was started. `why`: a platform error's message."""
        error = JobError(type="platform", message=why) if why is not None else None
        return cls(None, cut, error, None, None, finished_all_epochs=False)

    def stopped(self) -> "Ending":
        """The same facts after a stop request."""
        return replace(self, cut=Cut.STOPPED)


@dataclass(frozen=True, slots=True)
class Finish:
    """The job ends."""

    status: Status
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class Requeue:
    """The job goes back to the queue. `charged`: it costs one of `max_restarts`.

    `hyperparameters`: what the next attempt is given instead of the job's own; None leaves them.
    """

    outcome: str
    reason: str
    charged: bool = False
    delay_s: float = 0.0
    error: JobError | None = None
    hyperparameters: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """As if the host had died: not charged, but three in a row without a new checkpoint end the job."""

    reason: str


@dataclass(frozen=True, slots=True)
class Abandon:
    """Somebody else owns the job: nothing may be written."""


Outcome = Finish | Requeue | Lost | Abandon


def decide(ending: Ending, spec: TrainingJobSpec, restarts_used: int) -> Outcome:
    """Execution rules 25-27, read top to bottom."""
    succeeded = ending.exit_code == 0 and ending.failure is None
    match ending.cut:
        case Cut.LEASE_LOST:
            return Abandon()
        case Cut.STOPPED:
            return Finish(Status.STOPPED)
        case Cut.DRAINED if not (succeeded and ending.finished_all_epochs):
            return Requeue("drained", "the worker was shut down")
        case Cut.LICENCE:
            return Lost("SQL was away for longer than the licence")
        case Cut.STORE:
            return Requeue("platform", ending.why, delay_s=STORE_PAUSE_S)
        case Cut.PLATFORM | Cut.GANG:
            return Lost(ending.why)
        case Cut.TIMEOUT | Cut.STALLED | Cut.DIVERGED:
            return Finish(Status.FAILED, ending.cut_error)
    if succeeded:
        return Finish(Status.SUCCEEDED)
    error = ending.failure or ending.exit_error
    assert error is not None
    if error.type == "cuda_oom" and spec.on_oom == "shrink" and (smaller := _shrink(spec, error)) is not None:
        return smaller
    if error.type == "platform":  # the ranks could not meet: the place was ours to choose
        return Lost(error.message)
    if error.type in _CHARGED and restarts_used < spec.max_restarts:
        delay_s = min(RETRY_LIMIT_S, RETRY_FIRST_S * 2**restarts_used)
        return Requeue("failed", error.message, charged=True, delay_s=delay_s, error=error)
    return Finish(Status.FAILED, error)


def _shrink(spec: TrainingJobSpec, error: JobError) -> Requeue | None:
    """The same effective batch in smaller parts, from the last checkpoint; None where no smaller part is left."""
    now = MicroBatch.of(spec.hyperparameters)
    smaller = now.smaller() if now is not None else None
    if now is None or smaller is None:
        return None
    ranks = spec.resources.nodes * spec.resources.local_processes
    if spec.recipe is not None and smaller.size < ranks:
        return None  # a recipe's micro-batch is of all ranks together, and each needs a row of it
    reason = (
        f"{error.type}: micro_batch_size {now.size} -> {smaller.size}, "
        f"accumulation_steps {now.accumulation_steps} -> {smaller.accumulation_steps}"
    )
    changed = {**spec.hyperparameters, **smaller.as_hyperparameters()}
    return Requeue("failed", reason, error=error, hyperparameters=changed)
