"""Every error the client raises, on one page; `EpochcastError` catches them all."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epochcast.jobs import JobError, TrainingJob


class EpochcastError(Exception):
    """What all errors of this package have in common: their text names the thing, the value and the way out."""


class UsageError(EpochcastError):
    """Raised when what was asked can't be asked like this; no request was sent."""


class Unreachable(EpochcastError):
    """Raised when no answer came: nothing listens, the network failed, or no server is known."""


class IncompatibleServer(EpochcastError):
    """Raised when the answer is not one of an epochcast gateway, or of one this version can't read."""


class DamagedDownload(EpochcastError):
    """Raised when a downloaded file is not the one the registry names (size or sha256)."""


class JobFailed(EpochcastError):
    """Raised by `result()` when the job ended `failed` or `stopped`, or saved no model.

    `job`: as it ended. `error`: what it failed with, such as `type` `cuda_oom` with the memory's numbers; None when it
    did not fail.
    """

    def __init__(self, message: str, job: "TrainingJob") -> None:
        super().__init__(message)
        self.job = job
        self.error: JobError | None = job.error

    def __reduce__(self) -> "tuple[type[JobFailed], tuple[str, TrainingJob]]":
        return JobFailed, (str(self), self.job)


@dataclass(frozen=True)
class Problem:
    """The server's reason, as its `application/problem+json` (RFC 9457) gives it."""

    status: int
    title: str
    detail: str = ""
    code: str = ""
    errors: list[Any] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What a person reads: the detail (else the title), then one line for each wrong field it doesn't name."""
        head = self.detail or self.title
        fields = [_field_error(error) for error in self.errors]
        return [head, *(f"  {line}" for line in fields if line not in head)]


class Refused(EpochcastError):
    """Raised when the server said no; `problem` holds its reason."""

    def __init__(self, problem: Problem) -> None:
        super().__init__("\n".join(problem.lines()))
        self.problem = problem


class NotAuthenticated(Refused):
    """Raised when the server wants a token, or this one is wrong or expired."""


class NotFound(Refused):
    """Raised when there is no such job, model or recipe, or it belongs to someone else."""


class Conflict(Refused):
    """Raised when the job's status doesn't allow it, such as stopping a finished job."""


class Invalid(Refused):
    """Raised when the server found a value it can't take; `problem.errors` names the fields."""


def refusal(problem: Problem) -> Refused:
    """The error for the server's answer."""
    leaves = {401: NotAuthenticated, 404: NotFound, 409: Conflict, 422: Invalid}
    return leaves.get(problem.status, Refused)(problem)


def _field_error(error: Any) -> str:
    """`hyperparameters.lr: must be greater than 0`."""
    return f"{error.get('field')}: {error.get('message')}" if isinstance(error, dict) else str(error)


def may_pass(error: EpochcastError) -> bool:
    """Whether a later request may be answered."""
    return isinstance(error, Unreachable) or (isinstance(error, Refused) and error.problem.status >= 500)
