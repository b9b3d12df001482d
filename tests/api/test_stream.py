"""The socket of a job: which messages come in which order, with and without a cursor."""

import asyncio
import json
from typing import Any

import jsonschema
import pytest
from websockets.asyncio.client import connect

from api.app import create_app
from epochcast.events import EventId, decode
from epochcast.jobs import Status
from shared.database import Database
from shared.embedded import RedisServer
from shared.event_log import log_key
from shared.settings import Settings
from tests.api.reading import drain, ids, read_all, receive
from tests.api.serving import ThreadGateway
from tests.api.training import Training
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


async def test_a_job_is_followed_from_its_state_to_its_end(socket_gateway: ThreadGateway, training: Training) -> None:
    training.start().report(3)
    async with connect(socket_gateway.url(training.job_id)) as socket:
        (first,) = await receive(socket)
        assert (first["type"], first["status"], first["current_epoch"]) == ("progress", "running", 3)
        written = [*training.report(2), training.say("hello"), *training.report(1), training.finish()]
        messages, code, reason = await drain(socket)
    assert ids(messages) == [str(entry.id) for entry in written]
    assert messages[-1]["type"] == "complete"
    assert (code, reason) == (1000, "succeeded")


async def test_a_queued_job_says_so_first(socket_gateway: ThreadGateway, training: Training) -> None:
    async with connect(socket_gateway.url(training.job_id, path="stream")) as socket:
        (first,) = await receive(socket)
        assert (first["type"], first["status"], first["progress"]) == ("progress", "queued", 0.0)
        training.start()
        (claimed,) = await receive(socket)
        assert (claimed["type"], claimed["status"]) == ("progress", "running")


@pytest.mark.parametrize(
    ("status", "kind"), [(Status.SUCCEEDED, "complete"), (Status.FAILED, "error"), (Status.STOPPED, "progress")]
)
async def test_an_ended_job_answers_with_its_terminal_message_alone(
    socket_gateway: ThreadGateway, training: Training, status: Status, kind: str
) -> None:
    training.start().report(2)
    last = training.finish(status)
    messages, code, reason = await read_all(socket_gateway.url(training.job_id))
    assert [(message["id"], message["type"]) for message in messages] == [(str(last.id), kind)]
    assert (code, reason) == (1000, str(status))


async def test_a_stop_ends_a_queued_job_under_its_subscribers(
    socket_gateway: ThreadGateway, training: Training
) -> None:
    async with connect(socket_gateway.url(training.job_id)) as socket:
        await receive(socket)
        training.store.request_stop(training.job_id)
        training.announce()
        messages, code, reason = await drain(socket)
    assert [(message["type"], message["status"]) for message in messages] == [("progress", "stopped")]
    assert (code, reason) == (1000, "stopped")


async def test_every_message_type_is_the_documents_and_more(
    socket_gateway: ThreadGateway, training: Training, database: Database, redis_url: str
) -> None:
    """The fields of the owner's document, and on each message those that its Python client reads."""
    failing = Training(database, redis_url)
    training.start().report()
    training.say("Epoch 1/1000")
    training.finish()
    failing.start().finish(Status.FAILED)
    messages, _, _ = await read_all(socket_gateway.url(training.job_id, "?after=0"))
    messages += (await read_all(socket_gateway.url(failing.job_id)))[0]
    failing.close()
    assert {message["type"] for message in messages} == {"progress", "log", "complete", "error"}
    for message in messages:
        jsonschema.validate(message, SCHEMAS[message["type"]])
        decode(json.dumps(message))
    error = messages[-1]
    assert error["error_message"] == "CUDA out of memory"


async def test_after_0_gives_the_whole_history_then_live(socket_gateway: ThreadGateway, training: Training) -> None:
    """The terminal message of an earlier run is history and closes nothing."""
    training.start().report(2)
    training.finish(Status.FAILED)
    training.store.restart(training.job_id)
    training.announce()
    training.start().report(2)
    async with connect(socket_gateway.url(training.job_id, "?after=0")) as socket:
        history = await receive(socket, 9)
        training.report(1)
        training.finish()
        live, code, reason = await drain(socket)
    kinds = [(message["type"], message["status"]) for message in history]
    assert kinds == [
        ("progress", "queued"),
        ("progress", "running"),
        *[("progress", "running")] * 2,
        ("error", "failed"),
        ("progress", "queued"),
        *[("progress", "running")] * 3,
    ]
    assert ids(history + live) == training.ids
    assert (code, reason) == (1000, "succeeded")


async def test_a_returning_subscriber_gets_what_it_missed_once(
    socket_gateway: ThreadGateway, training: Training
) -> None:
    training.start().report(3)
    seen = []
    async with connect(socket_gateway.url(training.job_id, "?after=0")) as socket:
        seen += await receive(socket, 4)
    training.report(700)  # more than one page
    async with connect(socket_gateway.url(training.job_id, f"?after={seen[-1]['id']}")) as socket:
        seen += await receive(socket, 500)
        training.report(5)
        training.finish()
        rest, code, _ = await drain(socket)
    assert ids(seen + rest) == training.ids
    assert code == 1000


async def test_simultaneous_first_subscribers_get_every_message_once(
    socket_gateway: ThreadGateway, training: Training
) -> None:
    """Half of them with a cursor, half without, connecting while messages are published."""
    training.start()
    queries = ["?after=0", ""] * 5
    readers = [asyncio.create_task(read_all(socket_gateway.url(training.job_id, query))) for query in queries]
    for _ in range(60):
        await asyncio.to_thread(training.report, 5)
    await asyncio.to_thread(training.finish)
    whole = training.ids
    for query, (messages, code, _) in zip(queries, await asyncio.gather(*readers), strict=True):
        assert code == 1000
        # A first message without a cursor stands for the state under its id; from there on the log.
        assert ids(messages) == whole[whole.index(messages[0]["id"]) :], query
        assert query == "" or messages[0]["id"] == whole[0]


@pytest.mark.parametrize("distance", [0, 1, 1000])
async def test_at_or_past_the_end_of_an_ended_job_nothing_is_repeated(
    socket_gateway: ThreadGateway, training: Training, distance: int
) -> None:
    last = training.start().finish()
    cursor = EventId(last.id.generation, last.id.seq + distance)
    assert await read_all(socket_gateway.url(training.job_id, f"?after={cursor}")) == ([], 1000, "succeeded")


async def test_just_before_the_end_of_an_ended_job_only_its_end_comes(
    socket_gateway: ThreadGateway, training: Training
) -> None:
    training.start().report()
    cursor = training.last
    last = training.finish()
    messages, code, _ = await read_all(socket_gateway.url(training.job_id, f"?after={cursor}"))
    assert (ids(messages), code) == ([str(last.id)], 1000)


@pytest.mark.parametrize("cursor", ["2-500", "99-1"])
async def test_a_cursor_beyond_the_log_of_a_running_job_is_just_live(
    socket_gateway: ThreadGateway, training: Training, cursor: str
) -> None:
    training.start().report(3)
    async with connect(socket_gateway.url(training.job_id, f"?after={cursor}")) as socket:
        await wait_attached(socket_gateway, training.job_id)
        written = [*training.report(2), training.finish()]
        messages, code, _ = await drain(socket)
    assert ids(messages) == [str(entry.id) for entry in written]
    assert code == 1000


async def test_a_cursor_is_served_from_sql_where_the_stream_was_trimmed(
    socket_gateway: ThreadGateway, training: Training
) -> None:
    training.start().report(20)
    training.archive()
    training.client.xtrim(log_key(training.job_id), maxlen=3, approximate=False)
    async with connect(socket_gateway.url(training.job_id, "?after=0")) as socket:
        messages = await receive(socket, 22)
    assert ids(messages) == ["1-1", *(f"2-{seq}" for seq in range(1, 22))]


async def test_history_that_is_gone_is_announced(socket_gateway: ThreadGateway, training: Training) -> None:
    """Neither stream nor archive has it: the state now with `resync`, then what there is."""
    training.start().report(20)
    training.client.xtrim(log_key(training.job_id), maxlen=3, approximate=False)
    async with connect(socket_gateway.url(training.job_id, "?after=2-2")) as socket:
        first, *rest = await receive(socket, 4)
    assert (first["type"], first["resync"], first["current_epoch"]) == ("progress", True, 20)
    assert ids([first, *rest]) == ["2-18", "2-19", "2-20", "2-21"]
    assert "resync" not in rest[0]


async def test_without_redis_the_record_and_the_archive_answer(
    socket_gateway: ThreadGateway, training: Training, redis_server: RedisServer
) -> None:
    training.start().report(3)
    training.finish(Status.FAILED)
    other = Training(training.database, redis_server.url)
    redis_server.kill()
    try:
        messages, code, reason = await read_all(socket_gateway.url(training.job_id, "?after=0"))
        assert ids(messages) == ["1-1", *(f"2-{seq}" for seq in range(1, 6))]
        assert (code, reason) == (1000, "failed")
        assert ids((await read_all(socket_gateway.url(training.job_id)))[0]) == ["2-5"]
        async with connect(socket_gateway.url(other.job_id)) as socket:
            assert (await receive(socket))[0]["status"] == "queued"
    finally:
        redis_server.start()
        other.close()


async def test_the_fleet_socket_shows_all_jobs_without_logs(
    socket_gateway: ThreadGateway, training: Training, redis_url: str
) -> None:
    training.start().report(2)
    training.archive()
    async with connect(socket_gateway.fleet_url) as socket:
        (first,) = await receive(socket)
        assert (first["job_id"], first["current_epoch"]) == (training.job_id, 2)
        await wait_for_pattern(training)
        other = Training(training.database, redis_url, owner="bob")
        other.start()
        training.say("not for dashboards")
        training.report()
        training.finish()
        messages = await receive(socket, 4)
    other.close()
    assert [(message["job_id"], message["type"], message["status"]) for message in messages] == [
        (other.job_id, "progress", "queued"),
        (other.job_id, "progress", "running"),
        (training.job_id, "progress", "running"),
        (training.job_id, "complete", "succeeded"),
    ]


async def test_the_whole_application_serves_the_sockets(open_settings: Settings, training: Training) -> None:
    """As `python -m api` does, with every middleware and with its dispatcher, which announces what is stored."""
    with ThreadGateway(open_settings, make_app=lambda settings, _: create_app(settings)) as gateway:
        async with connect(gateway.url(training.job_id)) as socket:
            assert (await receive(socket))[0]["status"] == "queued"
            training.store.request_stop(training.job_id)
            messages, code, reason = await drain(socket)
        assert [message["status"] for message in messages] == ["stopped"]
        assert (code, reason) == (1000, "stopped")
        assert await read_all(gateway.url("x")) == ([], 1008, "job not found")


async def test_a_shorter_stream_is_completed_from_sql(socket_gateway: ThreadGateway, training: Training) -> None:
    """Redis came back from an older dump, and the worker, which would ship again, has nothing to say for now."""
    training.start().report(5)
    training.archive()
    training.client.xdel(log_key(training.job_id), "2-5", "2-6")
    async with connect(socket_gateway.url(training.job_id, "?after=2-2")) as socket:
        assert ids(await receive(socket, 4)) == ["2-3", "2-4", "2-5", "2-6"]


async def wait_attached(gateway: ThreadGateway, job_id: int) -> None:
    """Until the gateway's subscriber of a job reads the live feed."""
    await asyncio.to_thread(
        wait_until,
        lambda: [s for s in gateway.relay.channels.subscribers(job_id) if not s.is_behind],
        "a live subscriber",
    )


async def wait_for_pattern(training: Training) -> None:
    await asyncio.to_thread(wait_until, lambda: training.client.pubsub_numpat() == 1, "the fleet's subscription")


def _schema(*required: str) -> dict[str, Any]:
    kinds: dict[str, Any] = {
        "type": {"enum": ["progress", "log", "complete", "error"]},
        "job_id": {"type": "integer"},
        "status": {"enum": ["queued", "running", "succeeded", "failed", "stopped"]},
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "current_epoch": {"type": "integer"},
        "total_epochs": {"type": "integer"},
        "current_loss": {"type": ["number", "null"]},
        "timestamp": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"},
        "level": {"type": "string"},
        "message": {"type": "string"},
        "model_id": {"type": "integer"},
        "final_metrics": {"type": "object"},
        "error_message": {"type": "string"},
        "error": {"type": "object", "required": ["type", "message"]},
        "id": {"type": "string", "pattern": r"^\d+-\d+$"},
    }
    everywhere = ["type", "job_id", "status", "progress", "current_epoch", "total_epochs", "timestamp", "id"]
    return {"type": "object", "properties": kinds, "required": [*everywhere, *required]}


SCHEMAS = {
    "progress": _schema("current_loss", "metrics", "eta_s", "attempt"),
    "log": _schema("level", "message"),
    "complete": _schema("model_id", "final_metrics", "duration_s"),
    "error": _schema("error_message", "error"),
}
