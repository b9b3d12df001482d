"""All jobs on one connection: what a slow dashboard is spared, what it is never spared, and what nobody announced."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from api.closes import SLOW_CONSUMER, Close
from api.fleet_outbox import FleetOutbox, Frame
from epochcast.events import EventId
from epochcast.jobs import Status
from shared.settings import Settings
from tests.api.reading import Message, receive
from tests.api.serving import QUICK, ThreadGateway
from tests.api.training import Training
from tests.waiting import wait_until

SIZE = 10
EPOCHS = 900
STEPS = st.lists(st.tuples(st.sampled_from(["state", "end", "take"]), st.integers(1, 3)), max_size=60)


def _outbox(conflate_bytes: int, limit_bytes: int = 10**6) -> tuple[FleetOutbox, list[Close]]:
    closes: list[Close] = []
    return FleetOutbox(conflate_bytes, limit_bytes, closes.append), closes


def _play(outbox: FleetOutbox, steps: list[tuple[str, int]]) -> tuple[list[Frame], list[Frame], set[EventId]]:
    """What was put, what was taken (all of it in the end), and which of it were ends."""
    put: list[Frame] = []
    taken: list[Frame] = []
    ends: set[EventId] = set()
    for number, (step, job_id) in enumerate(steps):
        frame = Frame(job_id, EventId(1, number), "x" * SIZE)
        if step == "take":
            taken += [frame for frame in [outbox.take()] if frame is not None]
            continue
        put.append(frame)
        if step == "end":
            ends.add(frame.id)
            outbox.put_end(frame)
        else:
            outbox.put_state(frame)
    while (left := outbox.take()) is not None:
        taken.append(left)
    return put, taken, ends


@given(STEPS)
def test_who_keeps_up_gets_every_message_in_order(steps: list[tuple[str, int]]) -> None:
    outbox, _ = _outbox(conflate_bytes=10**6)
    put, taken, _ = _play(outbox, steps)
    assert taken == put


@given(STEPS, st.integers(0, 5))
def test_a_slow_reader_misses_no_end_and_no_newest_state(steps: list[tuple[str, int]], messages: int) -> None:
    outbox, closes = _outbox(conflate_bytes=messages * SIZE)
    put, taken, ends = _play(outbox, steps)
    assert not closes
    assert [frame.id for frame in taken if frame.id in ends] == [frame.id for frame in put if frame.id in ends]
    for job_id in {frame.job_id for frame in put}:
        whole = [frame.id for frame in put if frame.job_id == job_id]
        seen = [frame.id for frame in taken if frame.job_id == job_id]
        assert seen == sorted(set(seen)), "out of order, or twice"
        assert seen[-1] == whole[-1]
    assert (outbox._waiting_bytes, outbox._lasting_bytes, outbox._states) == (0, 0, {})


def test_what_waits_is_one_state_a_job_however_many_come() -> None:
    outbox, closes = _outbox(conflate_bytes=100, limit_bytes=200)
    for number in range(10_000):
        outbox.put_state(Frame(number % 50, EventId(1, number), "x" * SIZE))
    waiting = []
    while (frame := outbox.take()) is not None:
        waiting.append(frame)
    assert not closes
    assert len(waiting) <= 50 + 100 // SIZE + 1
    assert {frame.id.seq for frame in waiting} >= set(range(9_950, 10_000))


def test_ends_that_pile_up_without_end_close_the_connection() -> None:
    outbox, closes = _outbox(conflate_bytes=100, limit_bytes=200)
    for number in range(50):
        outbox.put_end(Frame(number, EventId(1, 1), "x" * SIZE))
    assert set(closes) == {SLOW_CONSUMER}


# --- with a gateway


@pytest.mark.anyio
async def test_a_slow_dashboard_gets_fewer_states_and_every_end(open_settings: Settings, training: Training) -> None:
    """It pauses while three jobs report and end; one that reads on gets everything."""
    limits = replace(QUICK, conflate_bytes=16_384, reconcile_s=60.0, send_timeout_s=60.0)
    with ThreadGateway(open_settings, limits) as gateway:
        jobs = [training, *(Training(training.database, open_settings.events_redis_url) for _ in range(2))]
        async with (
            connect(gateway.fleet_url, max_queue=1, ping_interval=None, compression=None) as slow,
            connect(gateway.fleet_url) as quick,
        ):
            for socket in (slow, quick):
                assert len(await receive(socket, 3)) == 3
            await asyncio.to_thread(wait_until, lambda: training.client.pubsub_numpat() == 1, "the subscription")
            everything: list[Message] = []
            reading = asyncio.create_task(_read_until_ended(quick, len(jobs), everything))
            ends = await asyncio.to_thread(_train, jobs, everything)
            await reading
            some: list[Message] = []
            await _read_until_ended(slow, len(jobs), some)
        for job in jobs[1:]:
            job.close()
    assert len(everything) == 3 * (1 + EPOCHS + 1)
    assert len(some) < len(everything)
    assert _ends(some) == _ends(everything) == ends
    for job in jobs:
        seen = [EventId.parse(message["id"]) for message in some if message["job_id"] == job.job_id]
        assert seen == sorted(seen)


def _train(jobs: list[Training], seen: list[Message]) -> set[tuple[int, str]]:
    """In steps that the quick one has read, because these cores have other work and it must not count as slow."""
    for job in jobs:
        job.start()
    for epochs in range(10, EPOCHS + 1, 10):
        for job in jobs:
            _report_at_once(job, 10)
        wait_until(partial(_has_read, seen, len(jobs) * (1 + epochs)), "the quick reader")
    return {(job.job_id, str(job.finish().id)) for job in jobs}


def _has_read(seen: list[Message], count: int) -> bool:
    return len(seen) == count


def _report_at_once(job: Training, count: int) -> None:
    """As `report`, in one trip: the state beside each event doesn't matter here."""
    for entry in job.report(count, ship=False):
        job.log.append(job.job_id, entry, snapshot=b"{}", current=entry.payload)


def _ends(messages: list[Message]) -> set[tuple[int, str]]:
    return {(message["job_id"], message["id"]) for message in messages if message["type"] == "complete"}


async def _read_until_ended(socket: Any, jobs: int, messages: list[Message]) -> None:
    while len(_ends(messages)) < jobs:
        messages += await receive(socket, timeout_s=60)


@pytest.mark.anyio
@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED, Status.STOPPED])
async def test_an_end_that_was_never_written_reaches_dashboards(
    socket_gateway: ThreadGateway, training: Training, status: Status
) -> None:
    training.start().report(2)
    training.archive()
    async with connect(socket_gateway.fleet_url) as socket:
        await receive(socket)
        last = training.finish(status, ship=False)
        (message,) = await receive(socket)
    assert (message["id"], message["status"]) == (str(last.id), str(status))


@pytest.mark.anyio
async def test_states_that_were_not_heard_are_made_up_for(socket_gateway: ThreadGateway, training: Training) -> None:
    training.start().report(2)
    training.archive()
    async with connect(socket_gateway.fleet_url) as socket:
        await receive(socket)
        for entry in training.report(3, ship=False):
            training.append(entry, announce=False)
        training.archive()
        (message,) = await receive(socket)
    assert (message["current_epoch"], message["resync"], message["id"]) == (5, True, str(training.last))
