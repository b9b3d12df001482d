"""How an attempt ended, and what follows from it: one table from facts to the job's next state."""

from dataclasses import dataclass
from enum import StrEnum

from epochcast.jobs import JobError, Status, TrainingJobSpec

RETRY_FIRST_S, RETRY_LIMIT_S = 5.0, 300.0
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


@dataclass(frozen=True, slots=True)
class Ending:
    """The facts once the last process is gone. `failure`: what the first rank to fail said of itself."""

    exit_code: int | None
    cut: Cut | None
    cut_error: JobError | None
    failure: JobError | None
    exit_error: JobError | None
    finished_all_epochs: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """The job ends."""

    status: Status
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class Requeue:
    """The job goes back to the queue. `charged`: it costs one of `max_restarts`."""

    outcome: str
    reason: str
    charged: bool = False
    delay_s: float = 0.0
    error: JobError | None = None


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
        case Cut.PLATFORM:
            return Lost(ending.cut_error.message if ending.cut_error else "the attempt's processes were lost")
        case Cut.TIMEOUT | Cut.STALLED | Cut.DIVERGED:
            return Finish(Status.FAILED, ending.cut_error)
    if succeeded:
        return Finish(Status.SUCCEEDED)
    error = ending.failure or ending.exit_error
    assert error is not None
    if error.type in _CHARGED and restarts_used < spec.max_restarts:
        delay_s = min(RETRY_LIMIT_S, RETRY_FIRST_S * 2**restarts_used)
        return Requeue("failed", error.message, charged=True, delay_s=delay_s, error=error)
    return Finish(Status.FAILED, error)
