"""Watching all jobs: the newest state of each and every end, through lost connections and for slow readers."""

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Self

import pytest

import epochcast
from epochcast.connection import Connection
from epochcast.errors import NotAuthenticated, Unreachable
from epochcast.events import EventId
from epochcast.following import Connected, Notice, Pace, Reconnecting
from epochcast.jobs import Status
from epochcast.transport import Transport
from epochcast.watch_fleet import JobMessage, watch_fleet
from shared.database import Database
from shared.settings import Settings
from tests.api.rest.served import Served
from tests.api.serving import QUICK as QUICK_GATEWAY
from tests.api.training import Training
from tests.dashboard.proxy import CuttableProxy
from tests.epochcast.scripted import ScriptedGateway, job, message, says, stays
from tests.waiting import wait_until

QUICK = Pace(backoff_s=0.01, longest_backoff_s=0.05, settle_s=0.05)


def of(job_id: int, seq: int, kind: str = "progress", **fields: Any) -> dict[str, Any]:
    return message(seq, kind, **fields) | {"job_id": job_id}


def heard(url: str, count: int, *, token: str | None = None, notices: list[Notice] | None = None) -> list[JobMessage]:
    """The first `count` messages of all jobs."""
    told: list[Notice] = [] if notices is None else notices

    async def collect() -> list[JobMessage]:
        transport = Transport(Connection(url, token))
        messages = watch_fleet(transport, on_notice=told.append, pace=QUICK)
        try:
            async with asyncio.timeout(60):
                return [await anext(messages) for _ in range(count)]
        finally:
            await messages.aclose()
            await transport.close()

    return asyncio.run(collect())


def ids(messages: list[JobMessage]) -> list[tuple[int, str]]:
    return [(each.job_id, each.id) for each in messages]


# --- against a script


def test_states_that_are_told_again_after_a_lost_connection_are_not_repeated() -> None:
    with ScriptedGateway(
        says(of(1, 1), of(2, 1), of(1, 2), close=1012, reason="service restart"),
        stays(of(1, 2), of(2, 3, resync=True), of(1, 3)),
    ) as gateway:
        notices: list[Notice] = []
        messages = heard(gateway.url, 5, token="secret-token", notices=notices)
        first = gateway.handshakes[0]
    assert ids(messages) == [(1, "1-1"), (2, "1-1"), (1, "1-2"), (2, "1-3"), (1, "1-3")]
    assert [type(notice) for notice in notices] == [Connected, Reconnecting, Connected]
    assert first.path == "/api/v1/training-jobs/ws"
    assert first.headers["Authorization"] == "Bearer secret-token"


def test_a_job_that_ended_while_nobody_listened_is_asked_for() -> None:
    pages: dict[str, list[Any]] = {
        "/api/v1/training-jobs/2": [503, 503, 503, job("succeeded", job_id=2, last_event_id="1-9", model_id=7)],
        "/api/v1/training-jobs/3": [404],
    }
    with ScriptedGateway(says(of(1, 1), of(2, 1), of(3, 1), close=None), stays(of(1, 1)), pages=pages) as gateway:
        messages = heard(gateway.url, 4)
        asked = set(gateway.gets)
    assert ids(messages)[3:] == [(2, "1-9")]
    assert messages[3].type == "complete"
    assert "/api/v1/training-jobs/1" not in asked


def test_a_late_repeat_of_an_end_is_no_news_and_another_run_is() -> None:
    with ScriptedGateway(
        stays(of(1, 1), of(1, 2, "complete"), of(1, 2, "complete"), of(1, 1, generation=2, status="queued"))
    ) as gateway:
        messages = heard(gateway.url, 3)
    assert ids(messages) == [(1, "1-1"), (1, "1-2"), (1, "2-1")]


def test_a_refused_token_is_an_error_and_never_tried_again() -> None:
    with ScriptedGateway(says(of(1, 1), close=1008, reason="token expired")) as gateway:
        with pytest.raises(NotAuthenticated, match="token expired"):
            heard(gateway.url, 2)
        assert len(gateway.handshakes) == 1


@pytest.mark.parametrize("refusals", [[(404, {})], [(502, {})] * 9])
def test_where_no_socket_can_be_had_it_says_so(refusals: list[tuple[int, dict[str, str]]]) -> None:
    with ScriptedGateway(refusals=refusals) as gateway, pytest.raises(Unreachable, match=r"jobs\(\) asks without one"):
        heard(gateway.url, 1)


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable, match=str(port)):
        heard(f"http://127.0.0.1:{port}", 1)


# --- against a gateway


class Watcher:
    """Somebody who watches all jobs, in a thread with a loop of its own."""

    def __init__(self, url: str, token: str) -> None:
        self.messages: list[JobMessage] = []
        self.notices: list[Notice] = []
        self.may_read = threading.Event()
        self.may_read.set()
        self._client = (url, token)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._watch()), name="watcher")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)
        assert not self._thread.is_alive()

    async def _watch(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        reading = asyncio.create_task(self._read())
        await self._over.wait()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading

    async def _read(self) -> None:
        async with epochcast.AsyncClient(*self._client) as client, aclosing(self._told(client)) as messages:
            async for each in messages:
                self.messages.append(each)
                await asyncio.to_thread(self.may_read.wait)

    def _told(self, client: epochcast.AsyncClient) -> AsyncGenerator[JobMessage, None]:
        return client.watch_fleet(on_notice=self.notices.append)

    def wait(self, predicate: Callable[[list[JobMessage]], bool], what: str) -> None:
        wait_until(lambda: predicate(self.messages), what, timeout_s=60)

    def lost(self) -> bool:
        return any(isinstance(notice, Reconnecting) for notice in self.notices)


@pytest.fixture
def trainings(sqlite_settings: Settings) -> Iterator[list[Training]]:
    """Two jobs that run, and one that waits."""
    database = Database(sqlite_settings.database_url.get_secret_value())
    jobs = [Training(database, sqlite_settings.events_redis_url) for _ in range(3)]
    for each in jobs[:2]:
        each.start().report(2)
        each.archive()
    yield jobs
    for each in jobs:
        each.close()
    database.close()


def test_every_jobs_state_comes_first_and_then_what_happens_through_a_cut_network(
    sqlite_settings: Settings, trainings: list[Training]
) -> None:
    first, second, _ = trainings
    with (
        Served(sqlite_settings) as served,
        CuttableProxy(served.url) as proxy,
        Watcher(proxy.url, served.token()) as watcher,
    ):
        watcher.wait(has_all_three, "the states of all jobs")
        first.report(1)
        watcher.wait(lambda told: any(each.current_epoch == 3 for each in told), "a live epoch")
        proxy.cut()
        wait_until(watcher.lost, "the loss of the connection")
        first.report(2)
        first.archive()
        second.finish(Status.SUCCEEDED)
        proxy.mend()
        watcher.wait(lambda told: ended(told) == {(2, str(second.last))}, "the end that nobody heard")
        watcher.wait(lambda told: newest(told, 1) == first.last, "the state that nobody heard")
        first.finish(Status.STOPPED)
        watcher.wait(lambda told: newest(told, 1) == first.last, "a live end")
        for job_id in (1, 2, 3):
            in_order(watcher.messages, job_id)


def has_all_three(messages: list[JobMessage]) -> bool:
    return {each.job_id for each in messages} == {1, 2, 3}


def in_order(messages: list[JobMessage], job_id: int) -> None:
    seen = [EventId.parse(each.id) for each in messages if each.job_id == job_id]
    assert seen == sorted(set(seen)), "out of order, or twice"


def ended(messages: list[JobMessage]) -> set[tuple[int, str]]:
    return {(each.job_id, each.id) for each in messages if each.type == "complete"}


def newest(messages: list[JobMessage], job_id: int) -> EventId:
    return max(EventId.parse(each.id) for each in messages if each.job_id == job_id)


EPOCHS = 900


def test_a_slow_reader_gets_newer_states_instead_of_older_ones_and_every_end(
    sqlite_settings: Settings, trainings: list[Training]
) -> None:
    trainings[2].start()
    limits = replace(QUICK_GATEWAY, conflate_bytes=16_384, reconcile_s=60.0, send_timeout_s=60.0)
    with Served(sqlite_settings, limits=limits) as served, Watcher(served.url, served.token()) as watcher:
        watcher.wait(has_all_three, "the states of all jobs")
        watcher.may_read.clear()
        for each in trainings:
            for entry in each.report(EPOCHS, ship=False):
                each.log.append(each.job_id, entry, snapshot=b"{}", current=entry.payload)
        ends = {(each.job_id, str(each.finish().id)) for each in trainings}
        watcher.may_read.set()
        watcher.wait(lambda told: ended(told) == ends, "the ends")
        assert len(watcher.messages) < 3 * EPOCHS
        for job_id in (1, 2, 3):
            in_order(watcher.messages, job_id)


def test_blocking_code_reads_it_as_long_as_it_likes(sqlite_settings: Settings, trainings: list[Training]) -> None:
    with Served(sqlite_settings) as served, epochcast.Client(served.url, served.token()) as client:
        messages = client.watch_fleet()
        assert {next(messages).job_id for _ in trainings} == {1, 2, 3}
        trainings[0].report(1)
        assert next(messages).current_epoch == 3
        messages.close()  # type: ignore[attr-defined]
        assert client.job(1).job_id == 1
