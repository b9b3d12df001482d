"""What the platform answers besides jobs: the gateway's own types, and those that the client gives out."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from epochcast.events import Event, Log
from epochcast.jobs import AwareTimestamp, JobError, Metrics, TrainingJobSpec


class _Answer(BaseModel):
    """Fields of a newer server are passed over; in OpenAPI all are required, because a server of ours sends all."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), json_schema_serialization_defaults_required=True)


class Member(_Answer):
    """One host's part in an attempt."""

    host: str
    gpus: list[int] = Field(default_factory=list)
    outcome: str | None = None
    reason: str | None = None


class Attempt(_Answer):
    """One run of a job. `outcome` is None while it goes on; `resumed_epoch`: of the checkpoint it has loaded."""

    number: int
    generation: int = 0
    host: str
    gpus: list[int] = Field(default_factory=list)
    members: list[Member] = Field(default_factory=list)
    outcome: str | None = None
    reason: str | None = None
    error: JobError | None = None
    resumed_epoch: int | None = None
    started_at: AwareTimestamp
    ended_at: AwareTimestamp | None = None


class Artifact(_Answer):
    """A file that a job left. Of a sharded checkpoint `bytes` counts all parts, and the file is their manifest."""

    artifact_id: int
    kind: Literal["checkpoint", "model", "log", "oom_snapshot"]
    attempt: int
    epoch: int | None = None
    step: int | None = None
    bytes: int
    sha256: str
    loss: float | None = None
    created_at: AwareTimestamp


class ModelRecord(_Answer):
    """A model of the registry. `lineage`: the spec, attempt, checkpoint and versions it came from."""

    model_id: int
    job_id: int
    name: str
    owner: str = ""
    metrics: Metrics = Field(default_factory=dict)
    lineage: dict[str, Any] = Field(default_factory=dict)
    bytes: int
    sha256: str
    created_at: AwareTimestamp


class Recipe(_Answer):
    """What can be run without code. `hyperparameters` is their JSON Schema."""

    name: str
    title: str = ""
    description: str = ""
    default_epochs: int
    hyperparameters: dict[str, Any] = Field(default_factory=dict)


class Plan(_Answer):
    """What a submission would do. No `pending_reason`: it would start at once, at `expected_start_at`."""

    spec: TrainingJobSpec
    hosts_that_fit: list[str] = Field(default_factory=list)
    queue_position: int | None = None
    pending_reason: str | None = None
    expected_start_at: AwareTimestamp | None = None


class Health(_Answer):
    """`degraded` names what is away; everything but live events still answers then."""

    status: Literal["ok", "degraded"]
    degraded: list[str] = Field(default_factory=list)


# --- the fleet


class Memory(_Answer):
    """Sizes in GiB."""

    total_gib: float
    used_gib: float


class Cpu(_Answer):
    cores: int
    percent: float | None = None


class Slots(_Answer):
    """How many jobs without GPU a host trains at once."""

    total: int
    used: int


class Gpu(_Answer):
    """One GPU. `users`: what has memory on it and is not ours, as `{"pid": …, "used_bytes": …}`."""

    index: int
    uuid: str = ""
    name: str
    memory: Memory
    utilisation_percent: float | None = None
    job_id: int | None = None
    users: list[dict[str, Any]] = Field(default_factory=list)
    quarantined: bool = False


class Training(_Answer):
    """A running job on a host. `silent_s`: since its last report, or since its attempt began."""

    job_id: int
    reported_at: AwareTimestamp | None = None
    silent_s: float
    is_stalled: bool = False


class Host(_Answer):
    """One host. The heartbeat says that it lives, `training` that its jobs get on: each can fail without the other."""

    name: str
    status: Literal["ready", "draining", "unreachable"]
    slots: Slots
    cpu: Cpu
    memory: Memory
    gpus: list[Gpu] = Field(default_factory=list)
    jobs: list[int] = Field(default_factory=list)
    training: list[Training] = Field(default_factory=list)
    versions: dict[str, Any] = Field(default_factory=dict)
    registered_at: AwareTimestamp | None = None
    heartbeat_at: AwareTimestamp | None = None
    heartbeat_age_s: float | None = None


# --- pages and receipts


class Bundle(_Answer):
    """`bundle` is what a submission names; `bytes` are those of its files, unpacked."""

    bundle: str
    files: int
    bytes: int


class EventPage(_Answer):
    """Messages after a cursor; `next_after` is the next one, `resync` says that some between are gone for good."""

    items: list[Event]
    next_after: str
    resync: bool = False


class LogPage(_Answer):
    """As `EventPage`, of log lines alone."""

    items: list[Log]
    next_after: str
    resync: bool = False
