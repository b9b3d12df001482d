"""The platform from asynchronous Python: `AsyncClient`, with every verb of the HTTP API."""

import asyncio
import re
import tempfile
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, Unpack
from urllib.parse import quote
from uuid import uuid4

from pydantic import BaseModel, TypeAdapter

from epochcast import connection, packing
from epochcast.answers import Artifact, Attempt, Health, Host, Plan, Recipe
from epochcast.downloads import OnBytes, download
from epochcast.errors import UsageError
from epochcast.events import Event, Log
from epochcast.following import Message, OnNotice, Place, cursor, unnoticed
from epochcast.handles import AsyncJob, AsyncModel, Columns, Submission, spec_of
from epochcast.jobs import HOST_NAME, Status
from epochcast.packing import Package
from epochcast.transport import Transport, understood
from epochcast.watch import watch
from epochcast.watch_fleet import JobMessage, watch_fleet

JOBS = "/training-jobs"
PAGE = 200
# The server unpacks and checks what it was sent before it answers.
UPLOAD_S = 600.0
Script = str | Path | Package
M = TypeVar("M", bound=Message)
A = TypeVar("A", bound=BaseModel)
_EVENTS: TypeAdapter[list[Message]] = TypeAdapter(list[Event])
_LOGS: TypeAdapter[list[Log]] = TypeAdapter(list[Log])


class AsyncClient:
    """One server, one owner. Found as the command line finds it: arguments, environment, a platform that runs here.

    Every verb raises Unreachable when no answer comes and Refused (by its leaves) when the server says no.
    """

    def __init__(self, url: str | None = None, token: str | None = None, *, timeout_s: float = 30.0) -> None:
        self.connection = connection.find(url, token)
        self._transport = Transport(self.connection, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()

    async def submit(
        self, script: Script | None = None, *, idempotency_key: str | None = None, **fields: Unpack[Submission]
    ) -> AsyncJob:
        """Submits a recipe, or a script of yours with its folder (`packing.choose` names another folder).

        A key of your own makes it safe to submit again after a crash; lost answers are anyway.
        """
        content = await self._transport.json(
            "POST",
            JOBS,
            body=await self._body(script, fields),
            headers={"Idempotency-Key": idempotency_key or uuid4().hex},
            is_repeatable=True,
        )
        return AsyncJob.of(self, content)

    async def upload(self, package: Package) -> str:
        """Sends the files, of which the server keeps the same ones once. Returns the bundle's name, `sha256:…`."""
        with tempfile.TemporaryFile() as file:
            await asyncio.to_thread(packing.write, package, file)
            if file.tell() > packing.MAX_ARCHIVE_BYTES:
                raise UsageError(f"{package.folder} packs to {file.tell():,} bytes; the limit is 256 MiB")
            answer = await self._transport.upload("/code", file, "application/gzip", UPLOAD_S)
        with understood("bundle"):
            return str(answer["bundle"])

    async def _body(self, script: Script | None, fields: Submission) -> dict[str, Any]:
        """What is submitted. A script's folder is sent first, once everything else about the job is right."""
        package = await asyncio.to_thread(packing.choose, script) if isinstance(script, str | Path) else script
        spec = spec_of(fields, package)
        if package is not None:
            spec = spec.model_copy(update={"bundle": await self.upload(package)})
        return spec.model_dump(mode="json", exclude_unset=True)

    async def plan(self, script: Script | None = None, **fields: Unpack[Submission]) -> Plan:
        """What `submit` would do: the resolved spec, the hosts that fit, the place in the queue. Stores no job."""
        body = await self._body(script, fields)
        answer = await self._transport.json("POST", JOBS, query={"dry_run": "true"}, body=body, is_repeatable=True)
        return _read(Plan, answer)

    async def jobs(
        self,
        *,
        status: Status | str | None = None,
        owner: str | None = None,
        tag: str | None = None,
        recipe: str | None = None,
        limit: int = 50,
    ) -> list[AsyncJob]:
        """The newest `limit` jobs that match, newest first."""
        query = {"status": status, "owner": owner, "tag": tag, "recipe": recipe}
        return [AsyncJob.of(self, item) for item in await self._pages(JOBS, query, limit)]

    async def job(self, job_id: int) -> AsyncJob:
        return AsyncJob.of(self, await self._transport.json("GET", f"{JOBS}/{job_id}"))

    async def stop(self, job_id: int) -> AsyncJob:
        """Asks the job to stop; it does after its step or epoch, with a checkpoint."""
        return AsyncJob.of(self, await self._transport.json("POST", f"{JOBS}/{job_id}/stop", is_repeatable=True))

    async def restart(self, job_id: int, *, from_scratch: bool = False) -> AsyncJob:
        """Queues a failed or stopped job again, from its last checkpoint unless `from_scratch`."""
        body = {"from_scratch": from_scratch}
        return AsyncJob.of(self, await self._transport.json("POST", f"{JOBS}/{job_id}/restart", body=body))

    async def metrics(
        self, job_id: int, *, max_points: int | None = None, by: Literal["epoch", "step"] = "epoch"
    ) -> Columns:
        """The history by column, `epoch` among them; `by="step"`: the reports that named a step."""
        query = {"max_points": max_points, "by": by}
        columns: Columns = await self._transport.json("GET", f"{JOBS}/{job_id}/metrics", query=query)
        return columns

    async def metrics_of(self, job_ids: Sequence[int], *, max_points: int | None = None) -> dict[int, Columns]:
        """The histories of up to 100 jobs in one answer, to compare them."""
        query = {"job_id": list(job_ids), "max_points": max_points}
        items = _items(await self._transport.json("GET", f"{JOBS}/metrics", query=query))
        with understood("metrics"):
            return {item["job_id"]: item["metrics"] for item in items}

    async def events(self, job_id: int, *, after: str = "0") -> list[Message]:
        """The event log after the message with id `after`."""
        return await self._after(job_id, "events", after, {}, _EVENTS)

    async def logs(self, job_id: int, *, after: str = "0", level: str | None = None) -> list[Log]:
        """The log lines after `after`, of `level` and above."""
        return await self._after(job_id, "logs", after, {"level": level, "limit": 1000}, _LOGS)

    async def attempts(self, job_id: int) -> list[Attempt]:
        return _read_all(Attempt, await self._transport.json("GET", f"{JOBS}/{job_id}/attempts"))

    async def artifacts(self, job_id: int) -> list[Artifact]:
        """The files that the job left: checkpoints, models, logs, memory snapshots; oldest first."""
        return _read_all(Artifact, await self._transport.json("GET", f"{JOBS}/{job_id}/artifacts"))

    async def download_artifact(
        self,
        job_id: int,
        artifact_id: int,
        path: str | Path | None = None,
        on_bytes: OnBytes = lambda _done: None,
    ) -> Path:
        """The file at `path`: a file, or a folder for the server's name of it (default: here). Checked as a model is.

        Raises UsageError when the job has no such artifact.
        """
        found = {artifact.artifact_id: artifact for artifact in await self.artifacts(job_id)}
        if artifact_id not in found:
            raise UsageError(f"job {job_id} has no artifact {artifact_id}; it has {sorted(found) or 'none'}")
        source = f"{JOBS}/{job_id}/artifacts/{artifact_id}/file"
        # A sharded checkpoint's `bytes` are those of all its parts, and the file is their manifest.
        size, name = await self._transport.file(source)
        target = _place(path, name or f"job-{job_id}-artifact-{artifact_id}")
        sha256 = found[artifact_id].sha256
        return await download(self._transport, source, target, size=size, sha256=sha256, on_bytes=on_bytes)

    def watch(
        self, job_id: int, *, after: str | None = None, on_notice: OnNotice = unnoticed
    ) -> AsyncGenerator[Message, None]:
        """Follows the job to its end; see `epochcast.watch.watch`."""
        return watch(self._transport, job_id, after=after, on_notice=on_notice)

    def watch_fleet(self, *, on_notice: OnNotice = unnoticed) -> AsyncGenerator[JobMessage, None]:
        """Follows all jobs that the token may see, for ever; see `epochcast.watch_fleet.watch_fleet`."""
        return watch_fleet(self._transport, on_notice=on_notice)

    async def show(self, job_id: int, *, after: str | None = None) -> AsyncJob:
        """Follows the job to its end and shows it live: below a notebook's cell, as `epochcast watch` on a terminal,
        else a line for each epoch. Interrupted, it leaves the job running. Gives the job as it is then."""
        from epochcast.showing import begin, showing, with_ticks

        with showing(await begin(self, job_id)) as shown:
            async for message in with_ticks(self.watch(job_id, after=after, on_notice=shown.notice)):
                shown.take(message)
        return await self.job(job_id)

    async def models(self, *, limit: int = 50) -> list[AsyncModel]:
        return [AsyncModel.of(self, item) for item in await self._pages("/models", {}, limit)]

    async def model(self, model_id: int) -> AsyncModel:
        return AsyncModel.of(self, await self._transport.json("GET", f"/models/{model_id}"))

    async def download_model(
        self, model_id: int, path: str | Path | None = None, on_bytes: OnBytes = lambda _done: None
    ) -> Path:
        """The model's safetensors file at `path`: a file, or a folder for `model-7.safetensors` (default: here)."""
        model = await self.model(model_id)
        target = _place(path, f"model-{model_id}.safetensors")
        source = f"/models/{model_id}/file"
        return await download(self._transport, source, target, size=model.bytes, sha256=model.sha256, on_bytes=on_bytes)

    async def recipes(self) -> list[Recipe]:
        return _read_all(Recipe, await self._transport.json("GET", "/recipes"))

    async def recipe(self, name: str) -> Recipe:
        """Its description and the JSON Schema of its hyperparameters."""
        return _read(Recipe, await self._transport.json("GET", f"/recipes/{quote(name, safe='')}"))

    async def hosts(self, *, job_id: int | None = None) -> list[Host]:
        """The fleet, by name; `job_id`: only the hosts on which this job has a place."""
        found: list[Host] = []
        cursor: str | None = None
        while True:
            answer = await self._transport.json("GET", "/hosts", query={"job_id": job_id, "cursor": cursor})
            found += _read_all(Host, answer)
            cursor = answer.get("next_cursor")
            if cursor is None:
                return found

    async def drain(self, host: str) -> Host:
        """No new job for this host; what it runs goes on. Returns the host."""
        return await self._set_draining(host, "drain")

    async def resume(self, host: str) -> Host:
        """The host takes jobs again."""
        return await self._set_draining(host, "resume")

    async def _set_draining(self, host: str, verb: str) -> Host:
        check_host_name(host)
        return _read(Host, await self._transport.json("POST", f"/hosts/{host}/{verb}", is_repeatable=True))

    async def health(self) -> Health:
        """What the server can reach. Raises Refused (503) when it can't serve."""
        return _read(Health, await self._transport.json("GET", f"{self.connection.url}/readyz"))

    async def _after(
        self, job_id: int, what: str, after: str, query: dict[str, str | int | None], adapter: TypeAdapter[list[M]]
    ) -> list[M]:
        """Everything after `after`, over as many pages as that takes; a page that doesn't advance is the last."""
        place, found = Place(cursor(after)), list[M]()
        while True:
            answer = await self._transport.json(
                "GET", f"{JOBS}/{job_id}/{what}", query={**query, "after": str(place.after)}
            )
            with understood(what):
                new = [message for message in adapter.validate_python(answer["items"]) if place.takes(message)]
            if not new:
                return found
            found += new

    async def _pages(self, path: str, query: dict[str, str | None], limit: int) -> list[Any]:
        """The first `limit` items, over as many pages as that takes."""
        found: list[Any] = []
        next_page: str | None = None
        while len(found) < limit:
            page = {**query, "limit": min(limit - len(found), PAGE), "cursor": next_page}
            answer = await self._transport.json("GET", path, query=page)
            found += _items(answer)
            next_page = answer.get("next_cursor")
            if next_page is None:
                break
        return found


def check_host_name(name: str) -> None:
    """Raises UsageError for what no host can be called."""
    if not re.fullmatch(HOST_NAME, name):
        raise UsageError(f"{name!r} is no host's name; `epochcast hosts` lists them")


def _items(answer: Any) -> list[Any]:
    with understood("list"):
        return [*answer["items"]]


def _read(kind: type[A], answer: Any) -> A:
    with understood(kind.__name__.lower()):
        return kind.model_validate(answer, extra="ignore")


def _read_all(kind: type[A], answer: Any) -> list[A]:
    return [_read(kind, item) for item in _items(answer)]


def _place(path: str | Path | None, name: str) -> Path:
    target = Path(path) if path is not None else Path()
    return target / name if target.is_dir() else target
