"""Polling: what the fast lane answers and what it leaves to the application; long polls; ETags."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx2
import jwt
import pytest
import sqlalchemy as sa

from api.gateway import Gateway
from api.polls import PolledJob
from epochcast.connection import Connection
from epochcast.events import BEFORE_ALL, encode
from epochcast.following import Pace, Place, unnoticed
from epochcast.jobs import Status
from epochcast.polling import poll
from epochcast.transport import Transport
from shared.database import Database
from shared.embedded import RedisServer
from shared.event_log import Entry, feed_channel
from shared.rows import progress_message
from shared.settings import Settings
from tests.api.rest.served import Served, problem
from tests.api.serving import QUICK
from tests.api.training import Training
from tests.waiting import wait_until

JOBS = "/api/v1/training-jobs"


@pytest.fixture
def served(sqlite_settings: Settings) -> Iterator[Served]:
    with Served(sqlite_settings, limits=QUICK) as running:
        yield running


@pytest.fixture
def run(served: Served, database: Database) -> Iterator["PublishedTraining"]:
    """A job of alice that the test trains itself, so no dispatcher may place it."""
    served.app.state.gateway.dispatcher.stop()
    training = PublishedTraining(database, served.settings.events_redis_url)
    yield training
    training.close()


class PublishedTraining(Training):
    """Publishes whole snapshots, as a worker does."""

    def append(self, entry: Entry, *, current: bytes | None = None, announce: bool = True) -> Any:
        job = self.job.model_copy(
            update={"last_event_id": str(entry.id), "current_epoch": self.epoch, "timestamp": self.job.timestamp}
        )
        current = current or encode(progress_message(job, entry.id))
        snapshot = job.model_dump_json().encode()
        answer = self.log.append(self.job_id, entry, snapshot=snapshot, current=current, announce=announce)
        self.last = entry.id
        return answer


def path(run: Training) -> str:
    return f"{JOBS}/{run.job_id}"


def polled(served: Served, run: Training) -> PolledJob | None:
    gateway: Gateway = served.app.state.gateway
    return gateway.polls.by_path.get(path(run))


def poll_until_hot(served: Served, client: httpx2.Client, run: Training) -> None:
    """Until the next GET of the job is the fast lane's."""

    def is_hot() -> bool:
        assert client.get(path(run)).status_code == 200
        job = polled(served, run)
        return job is not None and job.answer is not None

    wait_until(is_hot, "an answer in the process")


@contextmanager
def counted_statements(served: Served) -> Iterator[list[str]]:
    """The statements that reach SQL meanwhile."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            statements.append(statement)

    engine = served.app.state.gateway.database.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    yield statements
    sa.event.remove(engine, "before_cursor_execute", note)


def snapshot_reads(run: Training) -> int:
    stats: dict[str, Any] = run.client.info("commandstats")
    return int(stats.get("cmdstat_get", {}).get("calls", 0))


# --- the fast lane


def test_a_polled_job_costs_neither_sql_nor_redis(served: Served, alice: httpx2.Client, run: PublishedTraining) -> None:
    run.start().report(3)
    poll_until_hot(served, alice, run)
    whole = alice.get(path(run)).content
    with counted_statements(served) as statements:
        before = snapshot_reads(run)
        for _ in range(50):
            assert alice.get(path(run)).content == whole
        assert snapshot_reads(run) == before
    # A reconcile pass may fall into it: that reads many jobs' standings, never one job's row.
    assert not [statement for statement in statements if "spec" in statement]


def test_a_poller_sees_each_epoch_as_soon_as_a_subscriber(
    served: Served, alice: httpx2.Client, run: PublishedTraining
) -> None:
    run.start()
    for epoch in range(1, 30):
        poll_until_hot(served, alice, run)
        run.report()
        wait_until(lambda epoch=epoch: alice.get(path(run)).json()["current_epoch"] == epoch, "the epoch")  # type: ignore[misc]
    run.finish()
    wait_until(lambda: alice.get(path(run)).json()["status"] == "succeeded", "the end")


def test_the_fast_lane_answers_as_the_application_does(
    served: Served, alice: httpx2.Client, run: PublishedTraining
) -> None:
    run.start().report(3)
    first = alice.get(path(run))
    poll_until_hot(served, alice, run)
    fast = alice.get(path(run))
    assert fast.content == first.content
    assert _lasting(fast) == _lasting(first)
    known = {"If-None-Match": first.headers["etag"]}
    unchanged = alice.get(path(run), headers=known)
    # A parameter is all it takes to leave the fast lane.
    assert _lasting(unchanged) == _lasting(alice.get(f"{path(run)}?after=0", headers=known))


def _lasting(response: httpx2.Response) -> tuple[int, dict[str, str]]:
    return response.status_code, {name: value for name, value in response.headers.items() if name != "date"}


def test_what_the_fast_lane_may_not_answer_goes_the_usual_way(
    served: Served, alice: httpx2.Client, bob: httpx2.Client, run: PublishedTraining
) -> None:
    run.start().report()
    poll_until_hot(served, alice, run)
    problem(bob.get(path(run)), 404, "not_found")
    assert served.client("root", "jobs:read", "jobs:all").get(path(run)).status_code == 200
    problem(served.client(None).get(path(run)), 401, "authentication_required")
    problem(served.client("alice", "jobs:write").get(path(run)), 403, "missing_scope")
    problem(alice.get(path(run), headers={"Authorization": "Bearer x"}), 401, "invalid_token")
    problem(alice.get(path(run), headers={"Host": "evil.example"}), 400, "foreign_host")
    problem(alice.get(path(run), headers={"Origin": "https://evil.example"}), 403, "foreign_origin")
    problem(alice.post(path(run)), 405, "method_not_allowed")
    problem(alice.get(f"{path(run)}?after=x"), 422, "invalid_cursor")
    problem(alice.get(f"{JOBS}/0{run.job_id}"), 404, "not_found")
    own = alice.get(path(run), headers={"Origin": served.url})
    assert own.headers["access-control-allow-origin"] == served.url
    assert served.client(None).get(f"{path(run)}?token={served.token()}").status_code == 200


def test_a_token_that_has_expired_is_not_remembered(served: Served, run: PublishedTraining) -> None:
    run.start().report()
    assert served.settings.secret is not None
    now = int(time.time())
    claims = {"sub": "alice", "iat": now, "exp": now + 6, "scope": "jobs:read"}
    token = jwt.encode(claims, served.settings.secret.get_secret_value(), algorithm="HS256")
    client = served.client(None)
    client.headers["Authorization"] = f"Bearer {token}"
    poll_until_hot(served, client, run)
    wait_until(lambda: client.get(path(run)).status_code == 401, "the token's end", timeout_s=30)
    problem(client.get(path(run)), 401, "token_expired")


def test_polls_are_counted_by_route_whichever_lane_answers(
    served: Served, alice: httpx2.Client, run: PublishedTraining
) -> None:
    run.start().report()
    poll_until_hot(served, alice, run)
    series = 'epochcast_http_requests_total{method="GET",route="/api/v1/training-jobs/{job_id}",status="200"}'

    def counted() -> float:
        lines = alice.get("/metrics").text.splitlines()
        return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(series))

    before = counted()
    for _ in range(5):
        alice.get(path(run))
    assert counted() == before + 5


def test_an_end_that_redis_never_heard_of_reaches_pollers(
    served: Served, alice: httpx2.Client, run: PublishedTraining
) -> None:
    run.start().report(2)
    poll_until_hot(served, alice, run)
    run.finish(Status.FAILED, ship=False)
    # At once only when the snapshot is old enough to be compared; else with a reconcile pass.
    wait_until(lambda: alice.get(path(run)).json()["status"] == "failed", "the end", timeout_s=20)


def test_a_poll_never_shows_a_state_from_before_redis_was_lost(
    served: Served, alice: httpx2.Client, run: PublishedTraining, redis_server: RedisServer
) -> None:
    run.start().report(2)
    poll_until_hot(served, alice, run)
    redis_server.kill()
    try:
        job = polled(served, run)
        assert job is not None
        wait_until(lambda: job.answer is None, "the break that is noticed")
        run.finish(ship=False)
        assert alice.get(path(run)).json()["status"] == "succeeded"
    finally:
        redis_server.start()


def test_who_looks_once_leaves_no_subscription(served: Served, alice: httpx2.Client, run: PublishedTraining) -> None:
    run.start().report()
    alice.get(path(run))
    assert polled(served, run) is None
    assert run.client.pubsub_numsub(feed_channel(run.job_id))[0][1] == 0


def test_a_job_that_nobody_polls_any_more_is_let_go(
    sqlite_settings: Settings, database: Database, redis_url: str
) -> None:
    limits = replace(QUICK, polled_s=0.2)
    with Served(sqlite_settings, limits=limits) as served:
        served.app.state.gateway.dispatcher.stop()
        run = PublishedTraining(database, redis_url)
        run.start().report()
        poll_until_hot(served, served.client(), run)
        wait_until(lambda: polled(served, run) is None, "the job that is let go")
        channel = feed_channel(run.job_id)
        wait_until(lambda: run.client.pubsub_numsub(channel)[0][1] == 0, "the end of the subscription")
        run.close()


def test_no_more_jobs_are_followed_than_the_limit(
    sqlite_settings: Settings, database: Database, redis_url: str
) -> None:
    with Served(sqlite_settings, limits=replace(QUICK, polled_jobs=3)) as served:
        served.app.state.gateway.dispatcher.stop()
        runs = [PublishedTraining(database, redis_url) for _ in range(8)]
        client = served.client()
        for run in runs:
            run.start().report()
            for _ in range(3):
                assert client.get(path(run)).json()["current_epoch"] == 1
            assert len(served.app.state.gateway.polls) <= 3
        for run in runs:
            run.close()


# --- ETag


def test_an_unchanged_job_is_304_from_both_lanes(served: Served, alice: httpx2.Client, run: PublishedTraining) -> None:
    queued = alice.get(path(run))
    again = alice.get(path(run), headers={"If-None-Match": queued.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", queued.headers["etag"])
    run.start().report()
    poll_until_hot(served, alice, run)
    fresh = alice.get(path(run), headers={"If-None-Match": queued.headers["etag"]})
    assert fresh.status_code == 200
    assert fresh.headers["etag"] != queued.headers["etag"]
    tag = fresh.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        assert alice.get(path(run), headers={"If-None-Match": known}).status_code == 304, known
    for other in ('"other"', "", tag.strip('"')):
        assert alice.get(path(run), headers={"If-None-Match": other}).status_code == 200, other


# --- long polls


def test_a_long_poll_answers_at_the_next_event(served: Served, alice: httpx2.Client, run: PublishedTraining) -> None:
    run.start().report(3)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alice.get, path(run), params={"wait": 30, "after": str(run.last)})
        wait_until(lambda: (job := polled(served, run)) is not None and job.is_awaited, "the waiter")
        assert not waiting.done()
        (entry,) = run.report()
        job = waiting.result(60).json()
    assert (job["last_event_id"], job["current_epoch"]) == (str(entry.id), 4)


def test_a_long_poll_for_the_past_or_of_an_ended_job_answers_at_once(
    alice: httpx2.Client, run: PublishedTraining
) -> None:
    run.start().report(3)
    started = time.monotonic()
    assert alice.get(path(run), params={"wait": 30, "after": "0"}).json()["current_epoch"] == 3
    assert alice.get(path(run), params={"wait": 30}, headers={"If-None-Match": '"other"'}).status_code == 200
    last = run.finish()
    for query in (f"wait=30&after={last.id}", "wait=30"):
        assert alice.get(f"{path(run)}?{query}").json()["status"] == "succeeded"
    events = alice.get(f"{path(run)}/events", params={"wait": 30, "after": str(last.id)}).json()
    assert events == {"items": [], "next_after": str(last.id), "resync": False}
    assert time.monotonic() - started < 25


def test_a_long_poll_without_news_is_200_or_304_when_its_time_is_over(
    alice: httpx2.Client, run: PublishedTraining
) -> None:
    run.start().report()
    now = alice.get(path(run))
    same = alice.get(path(run), params={"wait": 0.2, "after": str(run.last)})
    assert (same.status_code, same.content) == (200, now.content)
    known = {"If-None-Match": now.headers["etag"]}
    assert alice.get(path(run), params={"wait": 0.2}, headers=known).status_code == 304
    assert alice.get(path(run), params={"wait": 0.2, "after": str(run.last)}, headers=known).status_code == 304
    assert alice.get(f"{path(run)}/events", params={"wait": 0.2, "after": str(run.last)}).json()["items"] == []


@pytest.mark.parametrize("wait", ["-1", "61", "x", "nan"])
def test_an_unusable_wait_is_422(alice: httpx2.Client, run: PublishedTraining, wait: str) -> None:
    problem(alice.get(path(run), params={"wait": wait}), 422, "invalid")


def test_a_long_poll_hears_of_an_end_that_was_never_written(
    served: Served, alice: httpx2.Client, run: PublishedTraining
) -> None:
    run.start().report()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alice.get, f"{path(run)}/events", params={"wait": 30, "after": str(run.last)})
        wait_until(lambda: (job := polled(served, run)) is not None and job.is_awaited, "the waiter")
        last = run.finish(ship=False)
        items = waiting.result(60).json()["items"]
    assert [item["id"] for item in items] == [str(last.id)]


def test_a_gateway_that_stops_answers_its_long_polls(
    served: Served, alice: httpx2.Client, run: PublishedTraining
) -> None:
    run.start().report()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alice.get, path(run), params={"wait": 60})
        wait_until(lambda: (job := polled(served, run)) is not None and job.is_awaited, "the waiter")
        served.stop()
        assert waiting.result(60).json()["current_epoch"] == 1


def test_hundreds_of_waiters_share_one_subscription_and_one_read(served: Served, run: PublishedTraining) -> None:
    run.start().report()
    job = wait_follow(served, run)
    connections = connected(run)
    before = snapshot_reads(run)

    async def crowd(count: int) -> list[httpx2.Response]:
        headers = {"Authorization": f"Bearer {served.token()}"}
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=served.url, headers=headers, timeout=60, limits=limits) as client:
            address = f"{path(run)}?wait=60&after={run.last}"
            waiting = [asyncio.create_task(client.get(address)) for _ in range(count)]
            await asyncio.to_thread(wait_until, lambda: len(job.waiters) == count, "all waiters", timeout_s=60)
            assert connected(run) <= connections + 5
            await asyncio.to_thread(run.report)
            return await asyncio.gather(*waiting)

    answers = asyncio.run(crowd(300))
    assert {answer.json()["last_event_id"] for answer in answers} == {str(run.last)}
    # On a busy machine the relay may also look after itself meanwhile.
    assert snapshot_reads(run) - before <= 30, "every waiter read for itself"
    assert not job.waiters


def test_our_client_without_websocket_waits_on_long_polls(served: Served, run: PublishedTraining) -> None:
    """Each message once, soon, and hardly more requests than messages."""
    run.start().report()
    told: list[str] = []

    async def follow() -> None:
        transport = Transport(Connection(served.url, served.token()))
        async for message in poll(transport, run.job_id, Place(BEFORE_ALL), unnoticed, Pace()):
            told.append(message.id)
        await transport.close()

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(lambda: asyncio.run(follow()))
        for _ in range(5):
            wait_until(lambda: told == run.ids and (job := polled(served, run)) and job.is_awaited, "the long poll")
            run.report()
        wait_until(lambda: told == run.ids, "the last epoch")
        run.finish()
        following.result(30)
    assert told == run.ids
    requests = served.client().get("/metrics").text
    counted = re.findall(r'requests_total{method="GET",route="(.+?)",status="200"} (.+)', requests)
    assert sum(float(count) for route, count in counted if "{job_id}" in route) <= 2 * (len(told) + 1)


def test_a_waiter_that_is_gone_is_forgotten(served: Served, run: PublishedTraining) -> None:
    run.start().report()
    job = wait_follow(served, run)
    with pytest.raises(httpx2.ReadTimeout):
        served.client().get(path(run), params={"wait": 60}, timeout=0.5)
    wait_until(lambda: not job.waiters, "the waiter's end")


def wait_follow(served: Served, run: PublishedTraining) -> PolledJob:
    poll_until_hot(served, served.client(), run)
    job = polled(served, run)
    assert job is not None
    return job


def connected(run: Training) -> int:
    return len(run.client.client_list())
