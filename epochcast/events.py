"""The messages of a job's stream: the wire contract of worker, gateway and clients, in one place.

The four types and their fields are the owner's document's; every message also carries `id`, `status`, `progress`,
`current_epoch` and `total_epochs`, because the document's Python client reads them from each message.
"""

import re
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from epochcast.jobs import AwareTimestamp, JobError, Metrics, Status, loss_of

MAX_LOG_BYTES = 8 * 1024


class EventId(tuple[int, int]):
    """`<generation>-<seq>`: the Redis stream id and the client's cursor; orders like the stream does."""

    __slots__ = ()

    _PATTERN = re.compile(r"(0|[1-9][0-9]{0,18})-(0|[1-9][0-9]{0,18})", re.ASCII)

    def __new__(cls, generation: int, seq: int) -> "EventId":
        return super().__new__(cls, (generation, seq))

    @classmethod
    def parse(cls, text: str) -> "EventId":
        """Reads `2-46`, or `0` for the time before the first event. Raises ValueError for anything else."""
        if text == "0":
            return cls(0, 0)
        match = cls._PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not an event id; an event id is <generation>-<seq>, such as 2-46, or 0")
        generation, seq = int(match[1]), int(match[2])
        if max(generation, seq) >= 2**63:
            raise ValueError(f"{text!r} is not an event id: its numbers are too large")
        return cls(generation, seq)

    @property
    def generation(self) -> int:
        return self[0]

    @property
    def seq(self) -> int:
        return self[1]

    def __str__(self) -> str:
        return f"{self[0]}-{self[1]}"

    def __repr__(self) -> str:
        return f"EventId({self[0]}, {self[1]})"


BEFORE_ALL = EventId(0, 0)


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    id: str
    job_id: int
    status: Status
    progress: float = Field(ge=0, le=1)
    current_epoch: int = Field(ge=0)
    total_epochs: int = Field(ge=1)
    timestamp: AwareTimestamp


class _NoLoss(_Message):
    @property
    def current_loss(self) -> None:
        """None: so that code which prints each message's loss needs no look at its type."""
        return None


class Progress(_Message):
    """The job's state now: every epoch, and at every change of status."""

    type: Literal["progress"] = "progress"
    current_loss: float | None = None
    metrics: Metrics = Field(default_factory=dict)
    eta_s: float | None = None
    attempt: int = 0
    stop_requested: bool = False
    non_finite: list[str] | None = None
    """Names of the metrics whose value was NaN or infinite (and is null here); absent when there are none."""
    resync: bool | None = None
    """True when history that a cursor asked for is gone; absent otherwise."""


class Log(_NoLoss):
    """One line of the job's log."""

    type: Literal["log"] = "log"
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    message: str


class Complete(_Message):
    """The job succeeded. Terminal."""

    type: Literal["complete"] = "complete"
    model_id: int | None = None
    final_metrics: Metrics = Field(default_factory=dict)
    duration_s: float | None = None

    @property
    def current_loss(self) -> float | None:
        """The final training loss, as `progress` names it; not on the wire."""
        return loss_of(self.final_metrics)


class Error(_NoLoss):
    """The job failed. Terminal."""

    type: Literal["error"] = "error"
    error_message: str
    error: JobError


Event = Annotated[Progress | Log | Complete | Error, Field(discriminator="type")]
_EVENT: TypeAdapter[Progress | Log | Complete | Error] = TypeAdapter(Event)


def encode(event: Progress | Log | Complete | Error) -> bytes:
    """The event's JSON, encoded once: what Redis, SQL and every subscriber get, byte for byte."""
    content: dict[str, Any] = event.model_dump(mode="json")
    ordered = {"type": content.pop("type"), **content}
    for optional in ("non_finite", "resync"):
        if ordered.get(optional, ...) is None:
            del ordered[optional]
    return orjson.dumps(ordered)


def decode(payload: bytes | str) -> Progress | Log | Complete | Error:
    """The event in `payload`. Raises pydantic.ValidationError when it is none."""
    return _EVENT.validate_json(payload)


def is_terminal(event: Progress | Log | Complete | Error) -> bool:
    """Whether this event ends the stream: `complete`, `error`, or the `progress` of a stopped job."""
    return event.type in ("complete", "error") or (event.type == "progress" and event.status.is_terminal)
