"""Server-Sent Events: the socket's messages, order and ends, and what only HTTP has."""

import io
import logging
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx2
import jwt
import pytest

from api.limits import Limits
from epochcast.jobs import Status
from shared import logs
from shared.database import Database
from shared.event_log import feed_channel, log_key, slots_key
from shared.settings import Settings
from tests.api.reading import ids
from tests.api.rest.served import Served, problem
from tests.api.serving import QUICK
from tests.api.sse import streaming
from tests.api.training import Training
from tests.waiting import wait_until

JOBS = "/api/v1/training-jobs"
LIMITS = replace(QUICK, comment_s=0.1)


@pytest.fixture
def served(sqlite_settings: Settings) -> Iterator[Served]:
    with _served(sqlite_settings, LIMITS) as running:
        yield running


def _served(settings: Settings, limits: Limits) -> Served:
    return Served(settings, limits=limits)


@pytest.fixture
def run(served: Served, database: Database) -> Iterator[Training]:
    """A job of alice that the test trains itself, so no dispatcher may place it."""
    served.app.state.gateway.dispatcher.stop()
    training = Training(database, served.settings.events_redis_url)
    yield training
    training.close()


def events(run: Training) -> str:
    return f"{JOBS}/{run.job_id}/events"


def test_a_stream_is_the_sockets_messages_with_their_ids(alice: httpx2.Client, run: Training) -> None:
    run.start().report(3)
    with streaming(alice, events(run)) as stream:
        (first,) = stream.receive()
        assert (first["type"], first["status"], first["current_epoch"]) == ("progress", "running", 3)
        assert stream.last_event_id == first["id"]
        written = [*run.report(2), run.say('line\nbreaks, "quotes", ü'), *run.report(1), run.finish()]
        messages, code, reason = stream.drain()
    assert ids(messages) == [str(entry.id) for entry in written]
    assert messages[2]["message"] == 'line\nbreaks, "quotes", ü'
    assert (code, reason) == (1000, "succeeded")
    assert stream.last_event_id == str(written[-1].id)
    assert stream.retry_ms is not None
    assert 1000 <= stream.retry_ms <= 3000


def test_a_stream_passes_proxies_unbuffered(alice: httpx2.Client, run: Training) -> None:
    with streaming(alice, events(run)) as stream:
        headers = stream.response.headers
    assert headers["content-type"] == "text/event-stream"
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-store"
    assert headers["transfer-encoding"] == "chunked"
    assert "content-encoding" not in headers


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED, Status.STOPPED])
def test_an_ended_job_is_its_terminal_message_and_then_no_content(
    alice: httpx2.Client, run: Training, status: Status
) -> None:
    """204 is what makes an EventSource stop asking."""
    last = run.start().finish(status)
    with streaming(alice, events(run)) as stream:
        messages, code, reason = stream.drain()
    assert (ids(messages), code, reason) == ([str(last.id)], 1000, str(status))
    again = alice.get(events(run), headers={"Accept": "text/event-stream", "Last-Event-ID": stream.last_event_id or ""})
    assert (again.status_code, again.content) == (204, b"")
    past = alice.get(f"{events(run)}?after=99-1", headers={"Accept": "text/event-stream"})
    assert past.status_code == 204


def test_a_returning_stream_gets_what_it_missed_once(alice: httpx2.Client, run: Training) -> None:
    """The address keeps the cursor that the stream began with; the header has the newer one."""
    run.start().report(3)
    path = f"{events(run)}?after=0"
    with streaming(alice, path) as stream:
        seen = stream.receive(4)
    run.report(20)
    with streaming(alice, path, Last_Event_ID=stream.last_event_id or "") as stream:
        seen += stream.receive(20)
        run.report(2)
        run.finish()
        rest, code, _ = stream.drain()
    assert ids(seen + rest) == run.ids
    assert code == 1000


def test_history_that_is_gone_is_announced(alice: httpx2.Client, run: Training) -> None:
    run.start().report(20)
    run.client.xtrim(log_key(run.job_id), maxlen=3, approximate=False)
    with streaming(alice, f"{events(run)}?after=2-2") as stream:
        first, *rest = stream.receive(4)
    assert (first["type"], first["resync"], first["current_epoch"]) == ("progress", True, 20)
    assert ids([first, *rest]) == ["2-18", "2-19", "2-20", "2-21"]


def test_an_end_that_was_never_written_comes_from_the_record(alice: httpx2.Client, run: Training) -> None:
    run.start().report(2)
    with streaming(alice, events(run)) as stream:
        stream.receive()
        last = run.finish(Status.FAILED, ship=False)
        messages, code, reason = stream.drain()
    assert (ids(messages), code, reason) == ([str(last.id)], 1000, "failed")


def test_a_silent_stream_shows_that_it_lives_and_outlasts_the_idle_limit(
    sqlite_settings: Settings, database: Database
) -> None:
    with _served(sqlite_settings, replace(LIMITS, idle_timeout_s=0.3)) as served:
        served.app.state.gateway.dispatcher.stop()
        run = Training(database, sqlite_settings.events_redis_url)
        with streaming(served.client(), events(run)) as stream:
            stream.receive()
            for _ in range(8):
                stream.until_comment()
            run.start()
            assert stream.receive()[0]["status"] == "running"
        run.close()


# --- who may, and how many


def test_refusals_are_problems_before_the_stream_begins(
    served: Served, alice: httpx2.Client, bob: httpx2.Client, run: Training
) -> None:
    stream = {"Accept": "text/event-stream"}
    problem(served.client(None).get(events(run), headers=stream), 401, "authentication_required")
    problem(served.client("alice", "jobs:write").get(events(run), headers=stream), 403, "missing_scope")
    problem(bob.get(events(run), headers=stream), 404, "not_found")
    problem(alice.get(f"{JOBS}/999/events", headers=stream), 404, "not_found")
    problem(alice.get(f"{events(run)}?after=x", headers=stream), 422, "invalid_cursor")
    problem(alice.get(events(run), headers={**stream, "Last-Event-ID": "x"}), 422, "invalid_cursor")


def test_streams_and_sockets_share_the_places_of_a_job(
    sqlite_settings: Settings, database: Database, redis_url: str
) -> None:
    with _served(sqlite_settings, replace(LIMITS, connections_per_job=1)) as served:
        served.app.state.gateway.dispatcher.stop()
        run = Training(database, redis_url)
        client = served.client()
        with streaming(client, events(run)):
            refused = served.client().get(events(run), headers={"Accept": "text/event-stream"})
            problem(refused, 429, "too_many_connections")
            assert refused.headers["retry-after"] == "1"
        wait_until(lambda: run.client.zcard(slots_key(run.job_id)) == 0, "the place that is given back")
        with streaming(client, events(run)) as stream:
            assert stream.receive()
        run.close()


def test_a_token_in_the_address_opens_a_stream_and_stands_in_no_log(
    served: Served, run: Training, log_lines: io.StringIO
) -> None:
    """A browser's EventSource can't set headers."""
    token = served.token()
    with streaming(served.client(None), f"{events(run)}?token={token}") as stream:
        assert stream.receive()
    served.stop()
    assert f"{events(run)}?token=[redacted]" in log_lines.getvalue()
    assert token not in log_lines.getvalue()


@pytest.fixture
def log_lines() -> Iterator[io.StringIO]:
    """What a gateway's log would hold, all of it."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(logs._formatter("gateway", []))
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in ("", "uvicorn.access")}
    root.addHandler(handler)
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_stream_ends_when_its_token_does(served: Served, run: Training) -> None:
    assert served.settings.secret is not None
    now = int(time.time())
    claims = {"sub": "alice", "iat": now, "exp": now + 5, "scope": "jobs:read"}
    token = jwt.encode(claims, served.settings.secret.get_secret_value(), algorithm="HS256")
    with streaming(served.client(None), f"{events(run)}?token={token}") as stream:
        _, code, reason = stream.drain()
    assert (code, reason) == (1008, "token expired")


# --- ends that nobody asked for


def test_a_gateway_that_stops_tells_its_streams(served: Served, alice: httpx2.Client, run: Training) -> None:
    with streaming(alice, events(run)) as stream, streaming(served.client(), f"{JOBS}/events") as fleet:
        stream.receive()
        fleet.receive()
        started = time.monotonic()
        served.stop()
        assert stream.drain()[1:] == (1012, "service restart")
        assert fleet.drain()[1:] == (1012, "service restart")
    assert time.monotonic() - started < 8, "it waited for streams that had been told"


def test_a_stream_whose_client_is_gone_gives_its_place_back(alice: httpx2.Client, run: Training) -> None:
    with streaming(alice, events(run)) as stream:
        stream.receive()
        assert run.client.zcard(slots_key(run.job_id)) == 1
    wait_until(lambda: run.client.zcard(slots_key(run.job_id)) == 0, "the place that is given back")
    channel = feed_channel(run.job_id)
    wait_until(lambda: run.client.pubsub_numsub(channel)[0][1] == 0, "the end of the subscription")


def test_a_reader_that_never_reads_is_dropped_and_delays_nobody(sqlite_settings: Settings, database: Database) -> None:
    with _served(sqlite_settings, replace(LIMITS, send_timeout_s=0.5, queue_bytes=100_000)) as served:
        served.app.state.gateway.dispatcher.stop()
        run = Training(database, sqlite_settings.events_redis_url)
        run.start()
        with _deaf_client(served, run), streaming(served.client(), events(run)) as stream:
            stream.receive()
            wait_until(lambda: served.app.state.gateway.relay.subscribers == 2, "both subscribers")
            said = []
            while served.app.state.gateway.relay.subscribers == 2:
                said += [run.say("x" * 4000) for _ in range(10)]
                assert ids(stream.receive(10)) == [str(entry.id) for entry in said[-10:]]
                assert len(said) < 5000, "the deaf client was never dropped"
            wait_until(lambda: run.client.zcard(slots_key(run.job_id)) == 1, "the deaf client's place")
        run.close()


def _deaf_client(served: Served, run: Training) -> socket.socket:
    """Asks for a stream and reads nothing of it."""
    host, port = re.fullmatch(r"http://(.+):(\d+)", served.url).groups()  # type: ignore[union-attr]
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect((host, int(port)))
    head = [f"GET {events(run)} HTTP/1.1", f"Host: {host}:{port}", "Accept: text/event-stream"]
    deaf.sendall("\r\n".join([*head, f"Authorization: Bearer {served.token()}", "", ""]).encode())
    return deaf


# --- all jobs


def test_the_stream_of_all_jobs_shows_what_the_token_may_see_without_logs(
    served: Served, run: Training, database: Database, redis_url: str
) -> None:
    run.start().report(2)
    run.archive()
    other = Training(database, redis_url, owner="bob")
    with streaming(served.client(), f"{JOBS}/events") as stream:
        assert [message["job_id"] for message in stream.receive()] == [run.job_id]
        wait_until(lambda: run.client.pubsub_numpat() == 1, "the subscription of all jobs")
        other.start()
        run.say("not for dashboards")
        run.report()
        run.finish()
        messages = stream.receive(2)
    with streaming(served.client("root", "jobs:read", "jobs:all"), f"{JOBS}/events") as stream:
        assert [message["job_id"] for message in stream.receive()] == [other.job_id]
    other.close()
    assert [(message["job_id"], message["type"]) for message in messages] == [
        (run.job_id, "progress"),
        (run.job_id, "complete"),
    ]
