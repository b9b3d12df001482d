"""What a user submits (`TrainingJobSpec`) and what the platform answers (`TrainingJob`)."""

import math
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    model_validator,
)

MAX_JOB_ID = 2**63 - 1
# What a host can be called.
HOST_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Status(StrEnum):
    """Where a training job stands. A job that waits for its next attempt is `queued` again."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.STOPPED})


def utc_seconds(moment: datetime) -> str:
    """`2025-01-07T10:15:00Z`: UTC, whole seconds, `Z` (the document's timestamps)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Timestamp = Annotated[datetime, PlainSerializer(utc_seconds, return_type=str)]


def _without_non_finite(value: Any) -> Any:
    """Refuses NaN and infinity at any depth: JSON has neither, and a browser's parser throws on them."""
    match value:
        case float() if not math.isfinite(value):
            raise ValueError("NaN and infinity are not allowed")
        case dict():
            for inner in value.values():
                _without_non_finite(inner)
        case list():
            for inner in value:
                _without_non_finite(inner)
    return value


Hyperparameters = Annotated[dict[str, Any], AfterValidator(_without_non_finite)]
Tag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$")]


class Resources(BaseModel):
    """What one attempt needs: on each of `nodes` hosts so many GPUs, each with `gpu_memory_gib` free."""

    model_config = ConfigDict(extra="forbid")

    gpus: int = Field(default=0, ge=0, le=100_000, strict=True)
    gpu_memory_gib: FiniteFloat | None = Field(default=None, gt=0, le=1e6)
    nodes: int = Field(default=1, ge=1, le=10_000, strict=True)
    procs_per_node: int | None = Field(default=None, ge=1, le=64, strict=True)
    """Processes on each host; None: one for each GPU, at least one."""

    @property
    def local_processes(self) -> int:
        """Processes on each host."""
        return self.procs_per_node or max(1, self.gpus)


class TrainingJobSpec(BaseModel):
    """The body of `POST /api/v1/training-jobs`: a recipe with hyperparameters, or a bundle with an entrypoint."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(default=None, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")
    recipe: str | None = Field(default=None, min_length=1, max_length=100)
    hyperparameters: Hyperparameters = Field(default_factory=dict)
    bundle: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")
    entrypoint: str | None = Field(default=None, min_length=1, max_length=500)
    args: list[str] = Field(default_factory=list, max_length=1_000)
    env: dict[str, str] = Field(default_factory=dict)
    total_epochs: int | None = Field(default=None, ge=1, le=10_000_000, strict=True)
    seed: int = Field(default=0, ge=0, le=2**32 - 1, strict=True)
    threads: int | None = Field(default=None, ge=1, le=1_024, strict=True)
    """CPU threads of each trainer process; None: the first host's cores / slots, then kept for every later attempt."""
    resources: Resources = Field(default_factory=Resources)
    priority: int = Field(default=0, ge=-1_000, le=1_000, strict=True)
    max_restarts: int = Field(default=0, ge=0, le=1_000, strict=True)
    max_runtime_s: FiniteFloat | None = Field(default=None, gt=0)
    stall_timeout_s: FiniteFloat | None = Field(default=None, gt=0)
    fail_on_non_finite: bool = Field(default=False, strict=True)
    on_oom: Literal["fail", "shrink"] = "fail"
    tags: list[Tag] = Field(default_factory=list, max_length=50)

    @classmethod
    def stored(cls, content: object) -> Self:
        """As a later version may have stored it: what this one doesn't know is left out. Raises ValidationError."""
        return cls.model_validate(content, extra="ignore")

    @model_validator(mode="after")
    def _recipe_or_bundle(self) -> Self:
        if (self.recipe is None) == (self.bundle is None):
            raise ValueError("give either recipe or bundle (with entrypoint), not both and not neither")
        if self.bundle is not None and self.entrypoint is None:
            raise ValueError("a bundle needs an entrypoint, such as train.py")
        if self.recipe is not None and (self.entrypoint is not None or self.args or self.env):
            raise ValueError("entrypoint, args and env belong to a bundle; a recipe takes hyperparameters")
        return self


ErrorType = Literal[
    "cuda_oom",
    "host_oom",
    "user_error",
    "diverged",
    "timeout",
    "stalled",
    "lost",
    "code_rejected",
    "environment",
    "platform",
]


class GpuMemory(BaseModel):
    """The numbers of a CUDA out-of-memory error, in GiB; None where the error did not say."""

    requested_gib: float | None = None
    free_gib: float | None = None
    allocated_gib: float | None = None
    reserved_gib: float | None = None
    total_gib: float | None = None
    others_gib: float | None = None


class JobError(BaseModel):
    """Why a job failed (contract §3). `message` is short and human; the rest is complete."""

    model_config = ConfigDict(extra="ignore")

    type: ErrorType
    message: str
    detail: str | None = None
    retryable: bool = False
    rank: int | None = None
    host: str | None = None
    gpu: str | None = None
    epoch: int | None = None
    step: int | None = None
    exit_code: int | None = None
    signal: str | None = None
    memory: GpuMemory | None = None
    verdict: str | None = None
    traceback: str | None = None


class HostPlacement(BaseModel):
    """One host of a job's placement, with the indices of the GPUs it holds there."""

    name: str
    gpus: list[int] = Field(default_factory=list)


Metrics = dict[str, float | None]
"""Metric name to value; None where the value was NaN or infinite."""


def loss_of(metrics: Metrics) -> float | None:
    """`current_loss`: train_loss, else loss, else val_loss; None where none is a number."""
    for name in ("train_loss", "loss", "val_loss"):
        if name in metrics:
            return metrics[name]
    return None


def _aware(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


AwareTimestamp = Annotated[Timestamp, BeforeValidator(_aware)]


class TrainingJob(BaseModel):
    """The job as `GET /api/v1/training-jobs/{job_id}` returns it: also the snapshot in the event log."""

    model_config = ConfigDict(extra="ignore")

    job_id: int
    name: str
    owner: str
    status: Status
    progress: float = 0.0
    current_epoch: int = 0
    total_epochs: int
    current_loss: float | None = None
    metrics: Metrics = Field(default_factory=dict)
    eta_s: float | None = None
    queue_position: int | None = None
    pending_reason: str | None = None
    expected_start_at: AwareTimestamp | None = None
    stop_requested: bool = False
    attempt: int = 0
    generation: int
    model_id: int | None = None
    final_metrics: Metrics | None = None
    error_message: str | None = None
    error: JobError | None = None
    spec: TrainingJobSpec
    hosts: list[HostPlacement] = Field(default_factory=list)
    last_event_id: str | None = None
    created_at: AwareTimestamp
    started_at: AwareTimestamp | None = None
    finished_at: AwareTimestamp | None = None
    timestamp: AwareTimestamp
