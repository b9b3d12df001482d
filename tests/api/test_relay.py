"""The relay under loss: holes, a Redis that dies or stalls, events that are never written."""

import asyncio
from typing import Any

import pytest
from websockets.asyncio.client import connect

from api import burst, channels
from api.history import History, Page
from epochcast.events import BEFORE_ALL, EventId
from epochcast.jobs import Status
from shared.embedded import RedisServer
from shared.event_log import Entry, feed_channel, log_key
from tests.api.reading import drain, ids, receive
from tests.api.serving import ThreadGateway
from tests.api.training import Training
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


async def test_one_subscription_serves_all_subscribers_of_a_job_and_ends_after_the_last(
    socket_gateway: ThreadGateway, training: Training
) -> None:
    channel = feed_channel(training.job_id)
    async with connect(socket_gateway.url(training.job_id)) as one, connect(socket_gateway.url(training.job_id)) as two:
        await receive(one)
        await receive(two)
        assert training.client.pubsub_numsub(channel) == [(channel.encode(), 1)]
    await asyncio.to_thread(
        wait_until, lambda: training.client.pubsub_numsub(channel)[0][1] == 0, "the end of the subscription"
    )


async def test_one_who_joins_a_job_that_never_pauses_becomes_level(
    socket_gateway: ThreadGateway, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each look at the end of the log there is one event more."""
    training.start()
    written = [str(entry.id) for entry in training.report(3)]
    read = History.after

    async def after(history: History, job_id: int, cursor: EventId) -> Page:
        page = await read(history, job_id, cursor)
        if page.is_end and len(written) < 500:
            written.append(str(training.report()[0].id))
            await asyncio.sleep(0.5)  # heard by now, on a busy machine too
        return page

    monkeypatch.setattr(History, "after", after)
    async with connect(socket_gateway.url(training.job_id, "?after=0")) as socket:
        before = len(training.ids) - len(written)
        assert ids(await receive(socket, before + 4))[before:] == written
        assert len(written) == 4, "its log was read to the end once"


async def test_plain_events_of_a_level_job_are_not_taken_apart(
    socket_gateway: ThreadGateway, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.start()
    taken_apart = []

    def heard(job_id: int, data: bytes) -> tuple[Entry, str] | None:
        taken_apart.append(data)
        return burst.heard(job_id, data)

    async with connect(socket_gateway.url(training.job_id)) as socket:
        await receive(socket)
        first = training.report()  # after this one the job's channel knows what comes next
        assert ids(await receive(socket, len(first))) == [str(entry.id) for entry in first]
        monkeypatch.setattr(channels, "heard", heard)
        written = [*training.report(2), training.say("a line")]
        assert ids(await receive(socket, len(written))) == [str(entry.id) for entry in written]
        assert taken_apart == []
        training.finish()
        await drain(socket)
    assert len(taken_apart) == 1, "the last one"


async def test_events_that_were_not_heard_are_read_again(socket_gateway: ThreadGateway, training: Training) -> None:
    """A published event shows the hole before it; without one, a reconcile pass finds what is there."""
    training.start()
    async with connect(socket_gateway.url(training.job_id)) as socket:
        await receive(socket)
        unheard = training.report(5, ship=False)
        for entry in unheard:
            training.append(entry, announce=False)
        heard = training.report()
        assert ids(await receive(socket, 6)) == [str(entry.id) for entry in [*unheard, *heard]]
        unheard = training.report(3, ship=False)
        for entry in unheard:
            training.append(entry, announce=False)
        assert ids(await receive(socket, 3)) == [str(entry.id) for entry in unheard]


async def test_a_hole_that_only_sql_can_fill(socket_gateway: ThreadGateway, training: Training) -> None:
    training.start()
    async with connect(socket_gateway.url(training.job_id)) as socket:
        await receive(socket)
        lost = training.report(5, ship=False)
        training.archive()
        after_hole = training.report(ship=False)[0]
        training.client.delete(log_key(training.job_id))
        training.client.xadd(log_key(training.job_id), _fields(training, after_hole.payload), id=str(after_hole.id))
        messages = await receive(socket, 6)
    assert ids(messages) == [str(entry.id) for entry in [*lost, after_hole]]


def _fields(training: Training, payload: bytes) -> dict[Any, Any]:
    prev = EventId(training.last.generation, training.last.seq - 1)
    return {"p": str(prev), "t": "progress", "s": "running", "o": training.owner, "g": "", "b": payload}


async def test_a_hole_that_nobody_can_fill_is_announced(socket_gateway: ThreadGateway, training: Training) -> None:
    training.start()
    async with connect(socket_gateway.url(training.job_id)) as socket:
        await receive(socket)
        training.report(5, ship=False)
        survivor = training.report(ship=False)[0]
        training.client.xadd(log_key(training.job_id), _fields(training, survivor.payload), id=str(survivor.id))
        resync, message = await receive(socket, 2)
        training.finish()
        rest, code, _ = await drain(socket)
    assert resync["resync"] is True
    assert resync["id"] == str(EventId(survivor.id.generation, survivor.id.seq - 1))
    assert message["id"] == str(survivor.id)
    assert (ids(rest), code) == ([str(training.last)], 1000)


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED, Status.STOPPED])
async def test_a_terminal_status_reaches_everybody_though_its_event_was_never_written(
    socket_gateway: ThreadGateway, training: Training, status: Status
) -> None:
    training.start().report(2)
    async with connect(socket_gateway.url(training.job_id)) as socket:
        await receive(socket)
        last = training.finish(status, ship=False)
        messages, code, reason = await drain(socket)
    assert ids(messages) == [str(last.id)]
    assert (code, reason) == (1000, str(status))


async def test_a_lost_attempt_and_the_next_one_are_one_story(socket_gateway: ThreadGateway, training: Training) -> None:
    """The requeue names what SQL knew last, while the stream had more: no repeat, no hole."""
    training.start()
    async with connect(socket_gateway.url(training.job_id, "?after=0")) as socket:
        await receive(socket, 2)
        training.report(2)
        training.archive()
        training.report(2)  # SQL never hears of these
        training.record.requeue("lost", "test")
        training.announce()
        training.start().report(1)
        training.finish()
        messages, code, _ = await drain(socket)
    whole = training.ids
    assert ids(messages) == whole[2:]
    assert code == 1000


async def test_redis_dies_and_comes_back_empty_under_connected_subscribers(
    socket_gateway: ThreadGateway, training: Training, redis_server: RedisServer
) -> None:
    """Nothing twice and nothing lost: the worker ships its generation again, as it does on `behind`."""
    training.start()
    async with (
        connect(socket_gateway.url(training.job_id)) as socket,
        connect(socket_gateway.url(training.job_id, "?after=0")) as from_start,
    ):
        await receive(socket)
        seen = await receive(from_start, 2)
        early = training.report(3)
        assert ids(await receive(socket, 3)) == [str(entry.id) for entry in early]
        redis_server.kill()
        while_away = training.report(4, ship=False)
        async with connect(socket_gateway.url(training.job_id)) as new:
            assert (await receive(new))[0]["status"] == "running"
            redis_server.start()
            training.ship_again()
            assert ids(await receive(socket, 4)) == [str(entry.id) for entry in while_away]
            last = training.finish()
            for one in (socket, new, from_start):
                messages, code, reason = await drain(one)
                assert ids(messages)[-1] == str(last.id)
                assert (code, reason) == (1000, "succeeded")
                if one is from_start:
                    whole = training.ids
                    assert ids(seen + messages) == ["1-1", *whole]


async def test_a_stalled_redis_is_noticed_and_caught_up_with(
    socket_gateway: ThreadGateway, training: Training, redis_server: RedisServer
) -> None:
    """Connections stay open and nothing answers: the job's end comes from SQL."""
    training.start().report(1)
    async with connect(socket_gateway.url(training.job_id)) as socket:
        await receive(socket)
        redis_server.pause()
        try:
            training.epoch += 1
            last = training.finish(ship=False)
            messages, code, _ = await drain(socket)
        finally:
            redis_server.resume()
    assert (ids(messages), code) == ([str(last.id)], 1000)


async def test_what_others_publish_on_the_channel_is_dropped(socket_gateway: ThreadGateway, training: Training) -> None:
    training.start()
    async with connect(socket_gateway.url(training.job_id)) as socket:
        await receive(socket)
        for nonsense in (b"", b"nonsense", b"1-1 0-0 progress\n{}", b"a b c d e f\n{}", b"\xff\xff\n"):
            training.client.publish(feed_channel(training.job_id), nonsense)
        written = training.report()
        assert ids(await receive(socket)) == [str(entry.id) for entry in written]
    assert written[0].id > BEFORE_ALL
