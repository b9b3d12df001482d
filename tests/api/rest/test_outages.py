"""What still answers while SQL or Redis is away, and how soon."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from shared.embedded import RedisServer
from shared.settings import Settings
from tests.api.rest.served import DIGITS, Served, problem, submit
from tests.conftest import make_settings
from tests.postgres import PostgresServer
from tests.waiting import wait_until

JOBS = "/api/v1/training-jobs"


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The contract's own limits; twice, because these cores have other work."""
    started = time.monotonic()
    yield
    passed = time.monotonic() - started
    assert passed < 2 * seconds, f"an answer in {seconds} s was waited for in vain: it took {passed:.1f} s"


def refused_for_want_of_sql(response: httpx2.Response) -> None:
    answer = problem(response, 503, "database_unavailable")
    assert "127.0.0.1" not in answer["detail"]
    assert response.headers["retry-after"] == "1"


@pytest.mark.postgres
def test_without_postgres_everything_is_503_soon_and_comes_back(
    postgres_server: PostgresServer, postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    with Served(make_settings(postgres_url, redis_url, tmp_path)) as served:
        client = served.client()
        job_id = submit(client)["job_id"]
        postgres_server.kill()
        try:
            for method, path in (("GET", JOBS), ("GET", f"{JOBS}/{job_id}"), ("POST", f"{JOBS}/{job_id}/stop")):
                with within(2):
                    refused_for_want_of_sql(client.request(method, path))
            with within(2):
                refused_for_want_of_sql(client.post(JOBS, json=DIGITS))
            with within(2):
                refused_for_want_of_sql(client.get("/readyz"))
            assert client.get("/healthz").status_code == 200
            assert "epochcast_sql_up 0.0" in client.get("/metrics").text
        finally:
            postgres_server.start()
        wait_until(lambda: client.get(f"{JOBS}/{job_id}").status_code == 200, "SQL's return")


def test_a_locked_sqlite_is_503_for_writers_only(served: Served, alice: httpx2.Client, sqlite_url: str) -> None:
    job_id = submit(alice)["job_id"]
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with within(2):
            refused_for_want_of_sql(alice.post(JOBS, json=DIGITS))
        assert alice.get(f"{JOBS}/{job_id}").status_code == 200
        other.execute("ROLLBACK")
    other.close()
    submit(alice)


def test_a_database_without_tables_is_not_ready(redis_url: str, tmp_path: Path) -> None:
    with Served(make_settings(f"sqlite:///{tmp_path}/empty.db", redis_url, tmp_path)) as served:
        refused_for_want_of_sql(served.client().get("/readyz"))


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_without_redis_everything_but_live_events_answers(
    redis_server: RedisServer, sqlite_settings: Settings, how: str
) -> None:
    with Served(sqlite_settings) as served:
        client = served.client()
        before = submit(client)["job_id"]
        wait_until(lambda: client.get(f"{JOBS}/{before}/events").json()["items"], "the first event")
        redis_server.kill() if how == "killed" else redis_server.pause()
        try:
            with within(1):
                response = client.post(JOBS, json=DIGITS)
                assert response.status_code == 201, f"the gateway waited for SQL in vain: {response.text}"
                job_id = response.json()["job_id"]
            for path in (
                f"{JOBS}/{job_id}",
                f"{JOBS}/{before}",
                f"{JOBS}/{before}/events",
                f"{JOBS}/{before}/logs",
                JOBS,
            ):
                with within(1):
                    assert client.get(path).status_code == 200
            with within(1):
                assert client.post(f"{JOBS}/{job_id}/stop").json()["status"] == "stopped"
            with within(1):
                assert client.post(f"{JOBS}/{job_id}/restart").json()["status"] == "queued"
            with within(1):
                assert client.get(f"{JOBS}/{job_id}").json()["status"] == "queued"
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()) == (200, {"status": "degraded", "degraded": ["redis"]})
            assert [event["id"] for event in client.get(f"{JOBS}/{before}/events").json()["items"]] == ["1-1"]
        finally:
            redis_server.resume() if how == "frozen" else redis_server.start()
        wait_until(lambda: client.get("/readyz").json()["status"] == "ok", "Redis' return")
