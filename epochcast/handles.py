"""What the client's verbs return: a job or a model that knows its client, so that `job.watch()` works."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict

from pydantic import PrivateAttr, ValidationError

from epochcast.answers import Artifact, Attempt, ModelRecord
from epochcast.downloads import OnBytes
from epochcast.errors import JobFailed, UsageError
from epochcast.events import Log
from epochcast.following import Message
from epochcast.jobs import Resources, Status, TrainingJob, TrainingJobSpec
from epochcast.packing import Package
from epochcast.transport import understood

if TYPE_CHECKING:
    from epochcast.async_client import AsyncClient
    from epochcast.client import Client


Columns = dict[str, list[float | None]]
"""A history by column: `epoch`, maybe `step`, and one for each metric, all equally long."""


class AsyncModel(ModelRecord):
    """A model, with the client that fetched it."""

    _client: "AsyncClient" = PrivateAttr()

    @classmethod
    def of(cls, client: "AsyncClient", content: Any) -> Self:
        with understood("model"):
            model = cls.model_validate(content)
        model._client = client
        return model

    async def download(self, path: str | Path | None = None, on_bytes: OnBytes = lambda _done: None) -> Path:
        """Its safetensors file, checked; see `AsyncClient.download_model`."""
        return await self._client.download_model(self.model_id, path, on_bytes)


class Model(ModelRecord):
    """A model, with the client that fetched it."""

    _client: "Client" = PrivateAttr()

    @classmethod
    def of(cls, client: "Client", model: ModelRecord) -> Self:
        copy = cls(**dict(model))
        copy._client = client
        return copy

    def download(self, path: str | Path | None = None, on_bytes: OnBytes = lambda _done: None) -> Path:
        """Its safetensors file, checked; see `AsyncClient.download_model`."""
        return self._client.download_model(self.model_id, path, on_bytes)


class AsyncJob(TrainingJob):
    """A job as it was when it was fetched, with the client that fetched it."""

    _client: "AsyncClient" = PrivateAttr()

    @classmethod
    def of(cls, client: "AsyncClient", content: Any) -> Self:
        with understood("job"):
            job = cls.model_validate(content, extra="ignore")  # a server may be newer, down to the spec
        job._client = client
        return job

    def watch(self, *, after: str | None = None) -> AsyncIterator[Message]:
        return self._client.watch(self.job_id, after=after)

    async def show(self) -> "AsyncJob":
        """Follows it to its end, shown live; see `AsyncClient.show`."""
        return await self._client.show(self.job_id)

    def _repr_html_(self) -> str:
        return _picture(self)

    async def refreshed(self) -> "AsyncJob":
        return await self._client.job(self.job_id)

    async def stop(self) -> "AsyncJob":
        return await self._client.stop(self.job_id)

    async def restart(self, *, from_scratch: bool = False) -> "AsyncJob":
        return await self._client.restart(self.job_id, from_scratch=from_scratch)

    async def history(self, *, max_points: int | None = None) -> Columns:
        """Its metrics epoch by epoch; the field `metrics` has the newest."""
        return await self._client.metrics(self.job_id, max_points=max_points)

    async def logs(self, *, after: str = "0", level: str | None = None) -> list[Log]:
        return await self._client.logs(self.job_id, after=after, level=level)

    async def attempts(self) -> list[Attempt]:
        return await self._client.attempts(self.job_id)

    async def artifacts(self) -> list[Artifact]:
        return await self._client.artifacts(self.job_id)

    async def result(self) -> AsyncModel:
        """Waits for the end; the job's model. Raises JobFailed when it failed, was stopped or saved no model."""
        async for _ in self.watch():
            pass
        return await self._client.model(_model_id(await self.refreshed()))


class Job(TrainingJob):
    """A job as it was when it was fetched, with the client that fetched it."""

    _client: "Client" = PrivateAttr()

    @classmethod
    def of(cls, client: "Client", job: TrainingJob) -> Self:
        copy = cls(**dict(job))
        copy._client = client
        return copy

    def watch(self, *, after: str | None = None) -> Iterator[Message]:
        return self._client.watch(self.job_id, after=after)

    def show(self) -> "Job":
        """Follows it to its end, shown live; see `AsyncClient.show`."""
        return self._client.show(self.job_id)

    def _repr_html_(self) -> str:
        return _picture(self)

    def refreshed(self) -> "Job":
        return self._client.job(self.job_id)

    def stop(self) -> "Job":
        return self._client.stop(self.job_id)

    def restart(self, *, from_scratch: bool = False) -> "Job":
        return self._client.restart(self.job_id, from_scratch=from_scratch)

    def history(self, *, max_points: int | None = None) -> Columns:
        """Its metrics epoch by epoch; the field `metrics` has the newest."""
        return self._client.metrics(self.job_id, max_points=max_points)

    def logs(self, *, after: str = "0", level: str | None = None) -> list[Log]:
        return self._client.logs(self.job_id, after=after, level=level)

    def attempts(self) -> list[Attempt]:
        return self._client.attempts(self.job_id)

    def artifacts(self) -> list[Artifact]:
        return self._client.artifacts(self.job_id)

    def result(self) -> Model:
        """Waits for the end; the job's model. Raises JobFailed when it failed, was stopped or saved no model."""
        for _ in self.watch():
            pass
        return self._client.model(_model_id(self.refreshed()))


def _picture(job: TrainingJob) -> str:
    """What a notebook shows of a job that is a cell's value: as it was when it was fetched."""
    from epochcast.cli.board import board_of
    from epochcast.notebook import picture

    return picture(board_of(job))


def _model_id(job: TrainingJob) -> int:
    # Without its client: an error may be sent to another process.
    ended = TrainingJob(**dict(job))
    if job.status is not Status.SUCCEEDED:
        reason = f": {job.error_message}" if job.error_message else ""
        raise JobFailed(f"job {job.job_id} {job.status}{reason}", ended)
    if job.model_id is None:
        raise JobFailed(f"job {job.job_id} succeeded but saved no model; call run.save_model in its script", ended)
    return job.model_id


class Submission(TypedDict, total=False):
    """What `submit` takes by name: the fields of `TrainingJobSpec`, those of its resources beside the others."""

    name: str | None
    recipe: str | None
    hyperparameters: dict[str, Any]
    args: Sequence[str]
    env: Mapping[str, str]
    total_epochs: int | None
    seed: int
    threads: int | None
    gpus: int
    gpu_memory_gib: float | None
    nodes: int
    procs_per_node: int | None
    priority: int
    max_restarts: int
    max_runtime_s: float | None
    stall_timeout_s: float | None
    fail_on_non_finite: bool
    on_oom: Literal["fail", "shrink"]
    tags: list[str]


NOT_YET_UPLOADED = f"sha256:{'0' * 64}"


def spec_of(submission: Submission, package: Package | None = None) -> TrainingJobSpec:
    """The body to send; with a package its bundle is still to be named. Raises UsageError, one line per wrong field."""
    fields: dict[str, Any] = dict(submission)
    if package is not None:
        fields |= {"bundle": NOT_YET_UPLOADED, "entrypoint": package.entrypoint}
    for name, kind in (("args", list), ("env", dict)):
        if name in fields and not isinstance(fields[name], str):
            fields[name] = kind(fields[name])
    resources = {name: fields.pop(name) for name in Resources.model_fields if name in fields}
    try:
        return TrainingJobSpec.model_validate({**fields, "resources": resources})
    except ValidationError as error:
        raise UsageError("\n".join(_line(problem) for problem in error.errors())) from None


def _line(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"] if part != "resources")
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
