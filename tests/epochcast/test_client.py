"""The Python client: its verbs, its errors, and its downloads, against real servers on loopback."""

import asyncio
import hashlib
import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

import epochcast
from epochcast.errors import (
    Conflict,
    DamagedDownload,
    IncompatibleServer,
    Invalid,
    JobFailed,
    NotAuthenticated,
    NotFound,
    Refused,
    Unreachable,
    UsageError,
)
from epochcast.handles import Job
from tests.epochcast.http_server import Answer, Call, serving
from tests.epochcast.scripted import ScriptedGateway, job, message, says, stays

PROBLEM = {"type": "about:blank", "title": "Unprocessable Content", "status": 422, "detail": "2 values can't be taken"}


def problem(status: int, **fields: Any) -> Answer:
    return Answer(status, {**PROBLEM, "status": status, **fields})


def test_submit_sends_the_spec_and_returns_a_job_that_knows_its_client() -> None:
    with serving(lambda _: Answer(201, job("queued"))) as server, epochcast.Client(server.url, "t0ken") as client:
        submitted = client.submit(
            recipe="image-classifier", hyperparameters={"lr": 0.01}, total_epochs=5, gpus=1, tags=["demo"]
        )
    (call,) = server.calls
    assert isinstance(submitted, Job)
    assert (submitted.job_id, submitted.status) == (42, "queued")
    assert (call.method, call.path) == ("POST", "/api/v1/training-jobs")
    assert call.headers["Authorization"] == "Bearer t0ken"
    assert orjson.loads(call.body) == {
        "recipe": "image-classifier",
        "hyperparameters": {"lr": 0.01},
        "total_epochs": 5,
        "resources": {"gpus": 1},
        "tags": ["demo"],
    }


def test_a_submit_whose_answer_is_lost_is_sent_again_as_the_same_submit() -> None:
    answers = iter([Answer(cut_after=0), problem(503), Answer(201, job("queued"))])
    with serving(lambda _: next(answers)) as server, epochcast.Client(server.url) as client:
        assert client.submit(recipe="image-classifier").job_id == 42
    keys = {call.headers["Idempotency-Key"] for call in server.calls}
    assert (len(server.calls), len(keys)) == (3, 1)


def test_a_restart_is_never_sent_twice() -> None:
    with serving(lambda _: Answer(cut_after=0)) as server, epochcast.Client(server.url) as client:
        with pytest.raises(Unreachable, match="broke"):
            client.restart(42)
        assert len(server.calls) == 1


def test_a_script_that_is_not_there_is_named_before_anything_is_sent() -> None:
    with epochcast.Client("http://127.0.0.1:1") as client, pytest.raises(UsageError, match=r"no-such\.py"):
        client.submit("no-such.py")


def test_a_wrong_field_is_named_before_anything_is_sent() -> None:
    with epochcast.Client("http://127.0.0.1:1") as client, pytest.raises(UsageError, match="total_epochs"):
        client.submit(recipe="image-classifier", total_epochs=0)


@pytest.mark.parametrize(
    ("status", "error"), [(401, NotAuthenticated), (404, NotFound), (409, Conflict), (422, Invalid), (403, Refused)]
)
def test_each_refusal_is_its_own_error_with_the_servers_words(status: int, error: type[Refused]) -> None:
    errors = [{"field": "hyperparameters.lr", "message": "must be greater than 0"}]
    with serving(lambda _: problem(status, errors=errors)) as server, epochcast.Client(server.url) as client:
        with pytest.raises(error) as raised:
            client.job(42)
        assert len(server.calls) == 1
    assert type(raised.value) is error
    assert str(raised.value) == "2 values can't be taken\n  hyperparameters.lr: must be greater than 0"
    assert raised.value.problem.status == status


def test_a_page_of_some_other_server_is_not_taken_for_an_answer() -> None:
    page = Answer(200, b"<html>hello</html>", {"Content-Type": "text/html"})
    with (
        serving(lambda _: page) as server,
        epochcast.Client(server.url) as client,
        pytest.raises(IncompatibleServer, match="text/html"),
    ):
        client.job(42)


@pytest.mark.parametrize("content", [[], {}, {"job_id": "x"}, None, {"items": 3}])
def test_an_answer_of_another_shape_is_an_error_of_ours(content: Any) -> None:
    with serving(lambda _: Answer(200, content)) as server, epochcast.Client(server.url) as client:
        with pytest.raises(IncompatibleServer):
            client.job(42)
        with pytest.raises(IncompatibleServer):
            client.attempts(42)


def test_a_server_of_a_later_version_is_understood() -> None:
    known = job("queued")
    later = {**known, "new": 1, "spec": {**known["spec"], "new": 1, "resources": {"gpus": 1, "new": 1}}}
    with serving(lambda _: Answer(200, later)) as server, epochcast.Client(server.url) as client:
        assert client.job(42).spec.resources.gpus == 1


def test_hosts_reads_all_pages_also_of_one_job() -> None:
    host = {
        "status": "ready",
        "slots": {"total": 1, "used": 0},
        "cpu": {"cores": 8},
        "memory": {"total_gib": 64, "used_gib": 1},
        "registered_at": "2025-01-07T10:15:00Z",
    }

    def answer(call: Call) -> Answer:
        cursor = call.path.partition("cursor=")[2]
        following = {"": "gpu-1", "gpu-1": "gpu-2", "gpu-2": None}[cursor]
        return Answer(200, {"items": [host | {"name": f"after-{cursor}"}], "next_cursor": following})

    with serving(answer) as server, epochcast.Client(server.url) as client:
        assert [host.name for host in client.hosts()] == ["after-", "after-gpu-1", "after-gpu-2"]
    with serving(lambda _: Answer(200, {"items": []})) as older, epochcast.Client(older.url) as client:
        assert client.hosts(job_id=42) == []
        assert [call.path for call in older.calls] == ["/api/v1/hosts?job_id=42"]


def test_jobs_follows_pages_up_to_the_limit_and_sends_its_filters() -> None:
    def answer(call: Call) -> Answer:
        size = 200 if "limit=200" in call.path else 50
        return Answer(200, {"items": [job()] * size, "next_cursor": "more"})

    with serving(answer) as server, epochcast.Client(server.url) as client:
        assert len(client.jobs(status="running", tag="demo", limit=250)) == 250
    first, second = server.calls
    assert first.path.endswith("?status=running&tag=demo&limit=200")
    assert second.path.endswith("?status=running&tag=demo&limit=50&cursor=more")


def test_events_are_read_to_their_end_and_each_once() -> None:
    pages = {"0-0": [message(1), message(2)], "1-2": [message(2), message(3, "complete")], "1-3": []}

    def answer(call: Call) -> Answer:
        return Answer(200, {"items": pages[call.path.split("after=")[1]]})

    with serving(answer) as server, epochcast.Client(server.url) as client:
        assert [event.id for event in client.events(42)] == ["1-1", "1-2", "1-3"]


def test_result_waits_for_the_end_and_gives_the_model() -> None:
    model = {"model_id": 7, "job_id": 42, "name": "digits", "bytes": 3, "sha256": "0", "created_at": 1736244900}
    pages = {
        "/api/v1/training-jobs/42": [job(), job("succeeded", model_id=7)],
        "/api/v1/models/7": [model],
    }
    gateway = ScriptedGateway(says(message(1), message(2, "complete")), pages=pages)
    with gateway, epochcast.Client(gateway.url) as client:
        assert client.job(42).result().model_id == 7


def test_result_of_a_failed_job_says_why() -> None:
    error = {"type": "cuda_oom", "message": "CUDA out of memory", "verdict": "try batch_size <= 96"}
    pages = {"/api/v1/training-jobs/42": [job(), job("failed", error_message="CUDA out of memory", error=error)]}
    gateway = ScriptedGateway(says(message(2, "error")), pages=pages)
    with (
        gateway,
        epochcast.Client(gateway.url) as client,
        pytest.raises(JobFailed, match="CUDA out of memory") as failure,
    ):
        client.job(42).result()
    for failed in (failure.value, pickle.loads(pickle.dumps(failure.value))):
        assert failed.error is not None
        assert (failed.error.type, failed.error.verdict) == ("cuda_oom", "try batch_size <= 96")
        assert failed.job.status == "failed"


def test_watching_works_where_a_loop_already_runs_as_in_a_notebook() -> None:
    async def cell(url: str) -> list[str]:
        with epochcast.Client(url) as client:
            return [each.id for each in client.watch(42)]

    with ScriptedGateway(says(message(1), message(2, "complete"))) as gateway:
        assert asyncio.run(cell(gateway.url)) == ["1-1", "1-2"]


def test_the_asynchronous_client_has_the_same_verbs() -> None:
    async def main(url: str) -> list[str]:
        async with epochcast.AsyncClient(url) as client:
            found = await client.job(42)
            return [each.id async for each in found.watch()]

    pages = {"/api/v1/training-jobs/42": [job()]}
    with ScriptedGateway(says(message(1), message(2, "complete")), pages=pages) as gateway:
        assert asyncio.run(main(gateway.url)) == ["1-1", "1-2"]
    verbs = {name for name in vars(epochcast.AsyncClient) if not name.startswith("_")}
    assert verbs == {name for name in vars(epochcast.Client) if not name.startswith("_")}


@contextmanager
def ctrl_c_soon() -> Iterator[None]:
    """Raises KeyboardInterrupt in this thread in 0.3 s, as a Ctrl-C would."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_ctrl_c_ends_a_blocking_watch_at_once_and_leaves_a_client_that_works() -> None:
    pages = {"/api/v1/training-jobs/42": [job()]}
    with ScriptedGateway(stays(message(1)), pages=pages) as gateway, epochcast.Client(gateway.url) as client:
        with pytest.raises(KeyboardInterrupt), ctrl_c_soon():
            for _ in client.watch(42):
                pass
        assert client.job(42).job_id == 42


# --- downloads

CONTENT = bytes(range(256)) * 20_000


def model_server(call: Call, *, content: bytes = CONTENT, cut_after: int | None = None, ranges: bool = True) -> Answer:
    """A registry with one model, whose file answers to Range."""
    if not call.path.endswith("/file"):
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        model = {"model_id": 7, "job_id": 42, "name": "m", "bytes": len(CONTENT), "sha256": sha256, "created_at": 0}
        return Answer(200, model)
    asked = call.headers.get("Range")
    if asked is None or not ranges:
        return Answer(200, content, cut_after=cut_after)
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
    return Answer(206, content[start:], headers, cut_after)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on_and_ends_whole(tmp_path: Path, ranges: bool) -> None:
    cuts = iter([3_000_000, 1_000_000])

    def answer(call: Call) -> Answer:
        return model_server(call, cut_after=next(cuts, None) if "file" in call.path else None, ranges=ranges)

    with serving(answer) as server, epochcast.Client(server.url) as client:
        path = client.model(7).download(tmp_path)
    assert path == tmp_path / "model-7.safetensors"
    assert path.read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == ["model-7.safetensors"]
    resumed = [call.headers["Range"] for call in server.calls if "Range" in call.headers]
    assert resumed[0] != "bytes=0-"


def test_a_download_outlasts_a_gateway_that_restarts_behind_its_proxy(tmp_path: Path) -> None:
    answers = iter([Answer(502, b"bad gateway"), problem(503, detail="the artifact store is away")])

    def answer(call: Call) -> Answer:
        return (next(answers, None) if call.path.endswith("/file") else None) or model_server(call)

    with serving(answer) as server, epochcast.Client(server.url) as client:
        assert client.download_model(7, tmp_path).read_bytes() == CONTENT
    assert len(server.calls) == 4


def test_a_refused_download_is_asked_for_once(tmp_path: Path) -> None:
    def answer(call: Call) -> Answer:
        return problem(404) if call.path.endswith("/file") else model_server(call)

    with serving(answer) as server, epochcast.Client(server.url) as client, pytest.raises(NotFound):
        client.download_model(7, tmp_path)
    assert len(server.calls) == 2


def test_a_damaged_file_is_thrown_away_and_the_old_one_kept(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"the old one")
    damaged = b"x" + CONTENT[1:]
    with (
        serving(lambda call: model_server(call, content=damaged)) as server,
        epochcast.Client(server.url) as client,
        pytest.raises(DamagedDownload, match="sha256"),
    ):
        client.download_model(7, target)
    assert target.read_bytes() == b"the old one"
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        serving(model_server) as server,
        epochcast.Client(server.url) as client,
        pytest.raises(UsageError, match="no-such-folder"),
    ):
        client.download_model(7, tmp_path / "no-such-folder" / "model")
