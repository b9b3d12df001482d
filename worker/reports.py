"""The trainer's packets, checked: a trainer is a user's code, and nothing it sends is trusted."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from epochcast.jobs import JobError, Metrics
from shared.manifest import NAME, FileName
from worker.attempt_socket import inside
from worker.failures import MESSAGE_BYTES, cut
from worker.lines import Level

MAX_METRICS = 1000


class _Packet(BaseModel):
    model_config = ConfigDict(extra="ignore")

    rank: int = 0


class Report(_Packet):
    epoch: int = Field(ge=0, le=2**53)
    step: int | None = Field(default=None, ge=0, le=2**53)
    metrics: Metrics = Field(max_length=MAX_METRICS)
    non_finite: list[str] = Field(default_factory=list, max_length=MAX_METRICS)

    @field_validator("metrics")
    @classmethod
    def _finite(cls, metrics: Metrics) -> Metrics:
        return {name: value if value is None or math.isfinite(value) else None for name, value in metrics.items()}


class SavedFile(_Packet):
    """A checkpoint or a model in the attempt's output folder."""

    file: str = Field(max_length=255)
    epoch: int | None = Field(default=None, ge=0, le=2**53)
    step: int | None = Field(default=None, ge=0, le=2**53)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    metrics: Metrics = Field(default_factory=dict, max_length=MAX_METRICS)
    non_finite: list[str] = Field(default_factory=list)

    def path(self, folder: Path) -> Path | None:
        return inside(folder, self.file)


class ShardFile(BaseModel):
    file: FileName
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ShardSaved(_Packet):
    """One rank's part of a checkpoint: files in a folder of the attempt's output folder."""

    rank: int = Field(ge=0)
    world: int = Field(ge=1, le=65_536)
    checkpoint: FileName
    epoch: int | None = Field(default=None, ge=0, le=2**53)
    step: int | None = Field(default=None, ge=0, le=2**53)
    files: list[ShardFile] = Field(min_length=1, max_length=256)

    @model_validator(mode="after")
    def _of_its_own(self) -> Self:
        if self.rank >= self.world:
            raise ValueError(f"rank {self.rank} is not one of {self.world}")
        names = [file.file for file in self.files]
        if len(set(names)) < len(names) or NAME in names:
            raise ValueError(f"files must have different names, and none is {NAME}")
        return self

    def paths(self, out: Path) -> list[Path] | None:
        """The files; None when one isn't a regular file directly inside the folder, or the folder is none."""
        folder = out / self.checkpoint
        if folder.is_symlink() or not folder.is_dir():
            return None
        paths = [inside(folder, file.file) for file in self.files]
        found = [path for path in paths if path is not None]
        return found if len(found) == len(paths) else None


class LogLine(_Packet):
    level: Level = "INFO"
    message: str


class Resumed(_Packet):
    epoch: int | None = Field(default=None, ge=0, le=2**53)
    step: int | None = Field(default=None, ge=0, le=2**53)
    unreadable: list[str] = Field(default_factory=list)


class EpochEnded(_Packet):
    """The epoch's loop body is over: its reports can become its event. `total_epochs`: if only the script knows it."""

    epoch: int = Field(ge=0, le=2**53)
    total_epochs: int | None = Field(default=None, ge=1, le=10_000_000)


class Failure(_Packet):
    error: JobError

    @model_validator(mode="after")
    def _of_its_rank(self) -> Self:
        if self.error.rank is None:
            self.error.rank = self.rank
        return self

    @field_validator("error")
    @classmethod
    def _fits(cls, error: JobError) -> JobError:
        """A message is one line, and what is kept and sent to everybody has bounds."""
        numbers = {name: getattr(error, name) for name in ("rank", "epoch", "step", "exit_code")}
        return error.model_copy(
            update={
                "message": cut(" ".join(error.message.split()), MESSAGE_BYTES) or error.type,
                **{name: cut(text, 8192) for name in _LONG if (text := getattr(error, name)) is not None},
                **{name: None for name, number in numbers.items() if number is not None and abs(number) > 2**53},
            }
        )


_LONG = ("detail", "traceback", "verdict", "gpu", "signal", "host")


@dataclass(frozen=True, slots=True)
class Checkpointed:
    saved: SavedFile


@dataclass(frozen=True, slots=True)
class ModelSaved:
    saved: SavedFile


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A packet that is not one of ours; `why` goes into the job's log."""

    why: str


@dataclass(frozen=True, slots=True)
class OomSnapshot:
    saved: SavedFile


Message = (
    Report
    | Checkpointed
    | ShardSaved
    | ModelSaved
    | LogLine
    | Resumed
    | EpochEnded
    | Failure
    | OomSnapshot
    | Unreadable
)


def read(packet: dict[str, Any]) -> Message:
    """The packet as one of the messages above."""
    try:
        match packet.get("type"):
            case "report":
                return Report.model_validate(packet)
            case "checkpoint":
                return Checkpointed(SavedFile.model_validate(packet))
            case "model":
                return ModelSaved(SavedFile.model_validate(packet))
            case "shard":
                return ShardSaved.model_validate(packet)
            case "log":
                return LogLine.model_validate(packet)
            case "resumed":
                return Resumed.model_validate(packet)
            case "epoch":
                return EpochEnded.model_validate(packet)
            case "oom_snapshot":
                return OomSnapshot(SavedFile.model_validate(packet))
            case "failure":
                return Failure.model_validate(packet)
            case other:
                return Unreadable(f"a packet of unknown type {str(other)[:100]!r} was passed over")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return Unreadable(f"a {packet.get('type')} packet was passed over: {place}: {first['msg']}")
