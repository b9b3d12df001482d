"""What the record refuses, on one page."""

from epochcast.jobs import Status


class RecordError(Exception):
    """The root of everything the record refuses; the message is fit for the user."""


class JobNotFound(RecordError):
    """Raised when a job doesn't exist or belongs to somebody else: the two look the same from outside."""

    def __init__(self, job_id: object) -> None:
        super().__init__(f"job {job_id} does not exist")
        self.job_id = job_id


class ModelNotFound(RecordError):
    """Raised when a model doesn't exist or belongs to somebody else."""

    def __init__(self, model_id: object) -> None:
        super().__init__(f"model {model_id} does not exist")


class ArtifactNotFound(RecordError):
    """Raised when an artifact doesn't exist, is another job's, or was dropped by retention."""

    def __init__(self, job_id: int, artifact_id: object) -> None:
        super().__init__(f"artifact {artifact_id} of job {job_id} does not exist")


class HostNotFound(RecordError):
    """Raised when no host of that name ever registered."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"host {name} has never registered; GET /api/v1/hosts (`epochcast hosts`) lists those that have"
        )


class HostNameTaken(RecordError):
    """Raised when a worker starts while another instance of its name is alive."""

    def __init__(self, name: str, age_s: float) -> None:
        super().__init__(
            f"host name {name} is taken: another worker of that name sent a heartbeat {age_s:.0f} s ago; "
            "stop it, or give this one another EPOCHCAST_HOST_NAME"
        )


class IllegalTransition(RecordError):
    """Raised when a job's status doesn't allow what was asked."""

    def __init__(self, job_id: int, status: Status, allowed: str) -> None:
        super().__init__(f"job {job_id} is {status}; only {allowed}")


class IdempotencyConflict(RecordError):
    """Raised when an Idempotency-Key comes back with another body."""

    def __init__(self, key: str, job_id: int) -> None:
        super().__init__(f"Idempotency-Key {key!r} was used for job {job_id} with another body; use a new key")
