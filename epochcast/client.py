"""The platform from blocking Python, for scripts and notebooks: `Client`."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Literal, Self, TypeVar, Unpack

from epochcast.answers import Artifact, Attempt, Health, Host, Plan, Recipe
from epochcast.async_client import AsyncClient, Script
from epochcast.downloads import OnBytes
from epochcast.events import Log
from epochcast.following import Message, OnNotice, unnoticed
from epochcast.handles import Columns, Job, Model, Submission
from epochcast.jobs import Status
from epochcast.loop_thread import LoopThread
from epochcast.packing import Package
from epochcast.watch_fleet import JobMessage

M = TypeVar("M", bound=Message)


class Client:
    """`AsyncClient` for blocking code: the same verbs, answered by values. Use it from any thread, or as a context."""

    def __init__(self, url: str | None = None, token: str | None = None, *, timeout_s: float = 30.0) -> None:
        self._async = AsyncClient(url, token, timeout_s=timeout_s)
        self.connection = self._async.connection
        self._loop = LoopThread()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if not self._loop.is_closed:
            self._loop.run(self._async.close())
            self._loop.close()

    def submit(
        self, script: Script | None = None, *, idempotency_key: str | None = None, **fields: Unpack[Submission]
    ) -> Job:
        return Job.of(self, self._loop.run(self._async.submit(script, idempotency_key=idempotency_key, **fields)))

    def upload(self, package: Package) -> str:
        return self._loop.run(self._async.upload(package))

    def plan(self, script: Script | None = None, **fields: Unpack[Submission]) -> Plan:
        return self._loop.run(self._async.plan(script, **fields))

    def jobs(
        self,
        *,
        status: Status | str | None = None,
        owner: str | None = None,
        tag: str | None = None,
        recipe: str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        wanted = self._async.jobs(status=status, owner=owner, tag=tag, recipe=recipe, limit=limit)
        return [Job.of(self, job) for job in self._loop.run(wanted)]

    def job(self, job_id: int) -> Job:
        return Job.of(self, self._loop.run(self._async.job(job_id)))

    def stop(self, job_id: int) -> Job:
        return Job.of(self, self._loop.run(self._async.stop(job_id)))

    def restart(self, job_id: int, *, from_scratch: bool = False) -> Job:
        return Job.of(self, self._loop.run(self._async.restart(job_id, from_scratch=from_scratch)))

    def metrics(self, job_id: int, *, max_points: int | None = None, by: Literal["epoch", "step"] = "epoch") -> Columns:
        return self._loop.run(self._async.metrics(job_id, max_points=max_points, by=by))

    def metrics_of(self, job_ids: Sequence[int], *, max_points: int | None = None) -> dict[int, Columns]:
        return self._loop.run(self._async.metrics_of(job_ids, max_points=max_points))

    def events(self, job_id: int, *, after: str = "0") -> list[Message]:
        return self._loop.run(self._async.events(job_id, after=after))

    def logs(self, job_id: int, *, after: str = "0", level: str | None = None) -> list[Log]:
        return self._loop.run(self._async.logs(job_id, after=after, level=level))

    def attempts(self, job_id: int) -> list[Attempt]:
        return self._loop.run(self._async.attempts(job_id))

    def artifacts(self, job_id: int) -> list[Artifact]:
        return self._loop.run(self._async.artifacts(job_id))

    def download_artifact(
        self,
        job_id: int,
        artifact_id: int,
        path: str | Path | None = None,
        on_bytes: OnBytes = lambda _done: None,
    ) -> Path:
        return self._loop.run(self._async.download_artifact(job_id, artifact_id, path, on_bytes))

    def watch(self, job_id: int, *, after: str | None = None, on_notice: OnNotice = unnoticed) -> Iterator[Message]:
        """As the asynchronous one; `on_notice` is called from the client's own thread."""
        return self._each(self._async.watch(job_id, after=after, on_notice=on_notice))

    def watch_fleet(self, *, on_notice: OnNotice = unnoticed) -> Iterator[JobMessage]:
        """As the asynchronous one; `on_notice` is called from the client's own thread."""
        return self._each(self._async.watch_fleet(on_notice=on_notice))

    def _each(self, messages: AsyncGenerator[M, None]) -> Iterator[M]:
        try:
            while (message := self._loop.run(anext(messages, None))) is not None:
                yield message
        finally:
            if not self._loop.is_closed:
                self._loop.run(messages.aclose())

    def show(self, job_id: int, *, after: str | None = None) -> Job:
        # Painted by the caller's thread: output of another one would not come below the cell.
        from epochcast.showing import begin, showing, with_ticks

        with showing(self._loop.run(begin(self._async, job_id))) as shown:
            messages = with_ticks(self._async.watch(job_id, after=after, on_notice=shown.notice))
            try:
                while True:
                    try:
                        message = self._loop.run(anext(messages))
                    except StopAsyncIteration:
                        break
                    shown.take(message)
            finally:
                if not self._loop.is_closed:
                    self._loop.run(messages.aclose())
        return self.job(job_id)

    def models(self, *, limit: int = 50) -> list[Model]:
        return [Model.of(self, model) for model in self._loop.run(self._async.models(limit=limit))]

    def model(self, model_id: int) -> Model:
        return Model.of(self, self._loop.run(self._async.model(model_id)))

    def download_model(
        self, model_id: int, path: str | Path | None = None, on_bytes: OnBytes = lambda _done: None
    ) -> Path:
        return self._loop.run(self._async.download_model(model_id, path, on_bytes))

    def recipes(self) -> list[Recipe]:
        return self._loop.run(self._async.recipes())

    def recipe(self, name: str) -> Recipe:
        return self._loop.run(self._async.recipe(name))

    def hosts(self, *, job_id: int | None = None) -> list[Host]:
        return self._loop.run(self._async.hosts(job_id=job_id))

    def drain(self, host: str) -> Host:
        return self._loop.run(self._async.drain(host))

    def resume(self, host: str) -> Host:
        return self._loop.run(self._async.resume(host))

    def health(self) -> Health:
        return self._loop.run(self._async.health())
