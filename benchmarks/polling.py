"""What one poll costs the server: an authenticated, owner-checked GET of a running job, beside other servers' GETs.

Each server is a process of its own and gets the same keep-alive load from another, in turns, so that a noisy minute
hits all. Counted is the server's CPU time per request (user and system), not the wall's. Last line: one JSON object.

    ours        the whole gateway, tokens on; the job is followed, nothing changes between two polls
    ours_304    the same with If-None-Match
    ours_cold   the same gateway asked for ever other parameters, so that every poll goes through FastAPI
    bare        uvicorn with an ASGI function that sends the same bytes: no token, no route, no look at the request
    sqlalchemy  the usual way: a FastAPI route that checks a token, reads the row by SQLAlchemy and validates a model
    mlflow      MLflow's REST server, GET of a run with one metric (only where mlflow with its server is installed)
"""

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(0, str(CHECKOUT))

CONNECTIONS = 8
READY = "ready"


@dataclass
class Subject:
    """A server to measure: its process, where it answers, and what it is asked."""

    name: str
    process: "subprocess.Popen[str]"
    port: int
    request: bytes
    expected_status: int = 200
    microseconds: list[float] = field(default_factory=list)


def main() -> None:
    options = _options()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        subjects = list(_subjects(stack, folder))
        for subject in subjects:
            _load(subject, options.requests // 4)  # warm
        for _ in range(options.rounds):
            for subject in subjects:
                subject.microseconds.append(_load(subject, _count(subject, options.requests)))
    medians = {subject.name: statistics.median(subject.microseconds) for subject in subjects}
    for name, cost in medians.items():
        print(f"{name:>12}  {cost:9.1f} us of server CPU per request  {cost / medians['bare']:7.2f} x bare")
    print(json.dumps(_result(medians, options)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=8000, help="per round and server (slow ones: a tenth)")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _count(subject: Subject, requests: int) -> int:
    return requests // 10 if subject.name in ("sqlalchemy", "ours_cold", "mlflow") else requests


def _result(medians: dict[str, float], options: argparse.Namespace) -> dict[str, object]:
    ours = medians["ours"]
    return {
        "benchmark": "polling",
        **{f"{name}_us": round(cost, 1) for name, cost in medians.items()},
        **{f"ours_over_{name}": round(ours / cost, 3) for name, cost in medians.items() if not name.startswith("ours")},
        "goal_ours_over_bare": 1.6,
        "requests": options.requests,
        "rounds": options.rounds,
        "connections": CONNECTIONS,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


# --- the servers


def _subjects(stack: ExitStack, folder: Path) -> Iterator[Subject]:
    from shared.embedded import RedisServer

    secret = secrets.token_hex(32)
    redis_server = stack.enter_context(RedisServer(folder / "redis"))
    environment = {
        "EPOCHCAST_DATABASE_URL": f"sqlite:///{folder}/epochcast.db",
        "EPOCHCAST_BROKER_URL": redis_server.url,
        "EPOCHCAST_ARTIFACTS_URL": (folder / "artifacts").as_uri(),
        "EPOCHCAST_WORK_DIR": str(folder / "work"),
        "EPOCHCAST_SECRET": secret,
        "BENCH_FOLDER": str(folder),
    }
    job = _running_job(environment, redis_server.url)
    (folder / "job.json").write_bytes(job)
    token = _token(secret)
    path = f"/api/v1/training-jobs/{json.loads(job)['job_id']}"
    ours = stack.enter_context(_server("ours", environment))
    yield Subject("ours", *ours, _get(path, token))
    yield Subject("ours_304", *ours, _get(path, token, f"If-None-Match: {_etag(ours[1], path, token)}"), 304)
    # A cursor in the past: the same answer, and the fast lane doesn't take parameters.
    yield Subject("ours_cold", *ours, _get(f"{path}?after=0", token))
    yield Subject("bare", *stack.enter_context(_server("bare", environment)), _get(path, token))
    yield Subject("sqlalchemy", *stack.enter_context(_server("sqlalchemy", environment)), _get(path, token))
    # mlflow-skinny is a client without the server and its flask.
    if importlib.util.find_spec("mlflow") is not None and importlib.util.find_spec("flask") is not None:
        process, port, run_id = stack.enter_context(_mlflow(folder))
        yield Subject("mlflow", process, port, _get(f"/api/2.0/mlflow/runs/get?run_id={run_id}", token))


def _running_job(environment: dict[str, str], redis_url: str) -> bytes:
    """Stores a job that runs, and publishes its snapshot as a worker does; the snapshot."""
    import redis
    import sqlalchemy as sa

    from epochcast.events import EventId, encode
    from epochcast.jobs import Status, TrainingJobSpec
    from shared import database
    from shared.database import Database
    from shared.event_log import Entry, EventLog
    from shared.rows import progress_message
    from shared.store import Store
    from shared.tables import jobs

    url = environment["EPOCHCAST_DATABASE_URL"]
    database.upgrade(url)
    record = Database(url)
    store = Store(record)
    metrics = {"train_loss": 0.0234, "val_loss": 0.0289}
    job, _ = store.create(TrainingJobSpec(recipe="image-classifier", total_epochs=100, name="digits"), "alice")
    with record.write() as connection:
        running = {"status": Status.RUNNING, "current_epoch": 45, "progress": 0.45, "metrics": metrics}
        connection.execute(sa.update(jobs).where(jobs.c.id == job.job_id).values(**running, lease_until=2**40))
    job = store.get(job.job_id).model_copy(update={"last_event_id": "2-1", "generation": 2})
    message = progress_message(job)
    entry = Entry(EventId(2, 1), EventId(1, 1), "progress", "running", "alice", encode(message))
    snapshot = job.model_dump_json().encode()
    with redis.Redis.from_url(redis_url) as client:
        appended = EventLog(client).append(job.job_id, entry, snapshot=snapshot, current=encode(message))
    assert appended.answer == "ok", appended
    record.close()
    return snapshot


def _token(secret: str) -> str:
    from shared import tokens

    return tokens.create("alice", ["jobs:read"], days=1, secret=secret)


@contextmanager
def _server(kind: str, environment: dict[str, str]) -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """`python benchmarks/polling.py --serve kind`, once it listens."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", kind],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(READY):
                break
        yield process, int(line.split()[1])
    finally:
        process.terminate()
        process.wait()


def serve(kind: str) -> None:
    """Logs are off in all of them: uvicorn's line per request costs more than the whole answer."""
    import logging

    import uvicorn

    from api.server import open_listener, uvicorn_config

    logging.basicConfig(level=logging.ERROR)
    listener = open_listener("127.0.0.1", 0)
    if kind == "ours":
        from api.app import create_app
        from shared.settings import from_environment

        config = uvicorn_config(create_app(from_environment()))
    else:
        app = _bare() if kind == "bare" else _sqlalchemy()
        config = uvicorn.Config(app, loop="uvloop", http="httptools", log_config=None, server_header=False)
    print(READY, listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run([listener])


def _bare() -> "ASGIApp":
    body = (Path(os.environ["BENCH_FOLDER"]) / "job.json").read_bytes()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

    async def app(scope: "Scope", _receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def _sqlalchemy() -> "ASGIApp":
    from typing import Annotated

    import jwt
    import sqlalchemy as sa
    from fastapi import Depends, FastAPI, HTTPException, Request
    from sqlalchemy.orm import Session

    from epochcast.jobs import TrainingJob
    from shared.rows import training_job
    from shared.tables import jobs

    engine = sa.create_engine(os.environ["EPOCHCAST_DATABASE_URL"])
    app = FastAPI()

    def session() -> Iterator[Session]:
        with Session(engine) as opened:
            yield opened

    def owner(request: Request) -> str:
        token = request.headers["authorization"].removeprefix("Bearer ")
        subject: str = jwt.decode(token, os.environ["EPOCHCAST_SECRET"], algorithms=["HS256"])["sub"]
        return subject

    @app.get("/api/v1/training-jobs/{job_id}")
    def get(
        job_id: int, session: Annotated[Session, Depends(session)], owner: Annotated[str, Depends(owner)]
    ) -> TrainingJob:
        row = session.execute(sa.select(jobs).where(jobs.c.id == job_id, jobs.c.owner == owner)).one_or_none()
        if row is None:
            raise HTTPException(404)
        return training_job(row, [])

    return app


@contextmanager
def _mlflow(folder: Path) -> "Iterator[tuple[subprocess.Popen[str], int, str]]":
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port)]
    process = subprocess.Popen([*command, "--workers", "1"], text=True, cwd=folder)
    try:
        run_id = _mlflow_run(f"http://127.0.0.1:{port}")
        yield process, port, run_id
    finally:
        process.terminate()
        process.wait()


def _mlflow_run(url: str) -> str:
    import mlflow

    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    mlflow.set_tracking_uri(url)
    with mlflow.start_run() as run:
        mlflow.log_metric("train_loss", 0.0234)
    return str(run.info.run_id)


# --- the load


def _get(path: str, token: str, *more: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1:1", f"Authorization: Bearer {token}", "Accept: */*", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def _etag(port: int, path: str, token: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        tag: str = response.headers["ETag"]
    return tag


def _load(subject: Subject, requests: int) -> float:
    """Microseconds of the server's CPU per request, of `requests` over CONNECTIONS that stay open."""
    from psutil import Process

    def spent() -> float:
        family = [Process(subject.process.pid), *Process(subject.process.pid).children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in family)

    before = spent()
    asyncio.run(_ask(subject, requests))
    return (spent() - before) / requests * 1e6


async def _ask(subject: Subject, requests: int) -> None:
    async def one(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", subject.port)
        for _ in range(count):
            writer.write(subject.request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % subject.expected_status), head
            if subject.expected_status != 304:
                await _read_body(reader, head.lower())
        writer.close()

    await asyncio.gather(*(one(requests // CONNECTIONS) for _ in range(CONNECTIONS)))


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> None:
    length = head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]
    await reader.readexactly(int(length))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main()
