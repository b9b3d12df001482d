"""Watching: every message once, whatever the server closes with, and an end that is one."""

import asyncio
import socket
from collections.abc import Iterable
from typing import Any

import orjson
import pytest

from epochcast.connection import Connection
from epochcast.errors import IncompatibleServer, NotAuthenticated, NotFound, Refused, Unreachable, UsageError
from epochcast.events import Complete, Error, Progress
from epochcast.following import Connected, Message, Notice, Pace, Polling, Reconnecting
from epochcast.transport import Transport
from epochcast.watch import watch
from tests.epochcast.scripted import ScriptedGateway, job, message, says, stays

QUICK = Pace(backoff_s=0.01, longest_backoff_s=0.05, poll_every_s=0.02, last_word_s=1.0, long_poll_s=1)
JOB = "/api/v1/training-jobs/42"


def watched(
    url: str,
    *,
    after: str | None = None,
    token: str | None = None,
    pace: Pace = QUICK,
    notices: list[Notice] | None = None,
) -> list[Message]:
    """Everything a watch of job 42 yields."""
    heard: list[Notice] = [] if notices is None else notices

    async def collect() -> list[Message]:
        transport = Transport(Connection(url, token))
        try:
            found = watch(transport, 42, after=after, on_notice=heard.append, pace=pace)
            return [each async for each in found]
        finally:
            await transport.close()

    return asyncio.run(collect())


def ids(messages: Iterable[Message]) -> list[str]:
    return [each.id for each in messages]


def test_messages_come_in_order_and_end_with_the_terminal_one() -> None:
    with ScriptedGateway(says(message(1), message(2, "log"), message(3, "complete"), reason="succeeded")) as gateway:
        messages = watched(gateway.url)
    assert ids(messages) == ["1-1", "1-2", "1-3"]
    assert isinstance(messages[-1], Complete)
    assert messages[-1].model_id == 7


def test_failed_and_stopped_jobs_end_the_watch_too() -> None:
    with ScriptedGateway(says(message(1, "error"), reason="failed")) as gateway:
        assert isinstance(watched(gateway.url)[-1], Error)
    with ScriptedGateway(says(message(1, status="stopped"), reason="stopped")) as gateway:
        assert watched(gateway.url)[-1].status == "stopped"


def test_the_token_travels_in_a_header_and_not_in_the_address() -> None:
    with ScriptedGateway(says(message(1, "complete"))) as gateway:
        watched(gateway.url, token="secret-token")
        (handshake,) = gateway.handshakes
    assert handshake.headers["Authorization"] == "Bearer secret-token"
    assert "secret-token" not in handshake.path


@pytest.mark.parametrize("code", [1001, 1006, 1011, 1012, 1013, 4408])
def test_a_lost_connection_resumes_after_the_last_message_and_repeats_none(code: int) -> None:
    close = None if code == 1006 else code
    with ScriptedGateway(
        says(message(1), message(2), close=close),
        says(message(2), message(3), close=close),  # 1-2 again: a server may overlap, a watch may not
        says(message(4, "complete")),
    ) as gateway:
        notices: list[Notice] = []
        messages = watched(gateway.url, notices=notices)
        assert gateway.afters() == [None, "1-2", "1-3"]
    assert ids(messages) == ["1-1", "1-2", "1-3", "1-4"]
    kinds = [type(notice) for notice in notices]
    assert kinds == [Connected, Reconnecting, Connected, Reconnecting, Connected]


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("job not found", NotFound),
        ("authentication required", NotAuthenticated),
        ("invalid token", NotAuthenticated),
        ("token expired", NotAuthenticated),
        ("invalid cursor", Refused),
    ],
)
def test_1008_is_an_error_and_never_reconnects(reason: str, error: type[Exception]) -> None:
    with ScriptedGateway(says(close=1008, reason=reason)) as gateway:
        with pytest.raises(error):
            watched(gateway.url)
        assert len(gateway.handshakes) == 1


def test_a_token_that_expires_later_ends_the_watch_with_its_error() -> None:
    with ScriptedGateway(says(message(1), close=1008, reason="token expired")) as gateway:
        with pytest.raises(NotAuthenticated, match="token expired"):
            watched(gateway.url)
        assert len(gateway.handshakes) == 1


def test_1000_without_any_message_ends_the_watch() -> None:
    with ScriptedGateway(says(reason="succeeded")) as gateway:
        assert watched(gateway.url, after="1-9") == []
        assert gateway.afters() == ["1-9"]


def test_terminal_messages_of_an_earlier_run_are_history() -> None:
    with ScriptedGateway(
        says(
            message(1),
            message(2, "error"),
            message(1, generation=2, status="queued"),
            message(2, "complete", generation=2),
        )
    ) as gateway:
        messages = watched(gateway.url, after="0")
        assert gateway.afters() == ["0-0"]
    assert ids(messages) == ["1-1", "1-2", "2-1", "2-2"]


def test_a_terminal_message_whose_close_is_lost_still_ends_the_watch() -> None:
    with ScriptedGateway(says(message(1, "complete"), close=None), says()) as gateway:
        assert ids(watched(gateway.url)) == ["1-1"]
        assert gateway.afters() == [None, "1-1"]


def test_a_terminal_message_after_which_the_server_vanishes_still_ends_the_watch() -> None:
    with ScriptedGateway(says(message(1, "complete"), close=None), refusals=[]) as gateway:
        gateway.plays = [says(message(1, "complete"), close=None), says(close=None)]
        assert ids(watched(gateway.url)) == ["1-1"]


def test_a_server_that_forgets_to_close_does_not_hold_the_watch() -> None:
    with ScriptedGateway(stays(message(1, "complete"))) as gateway:
        assert ids(watched(gateway.url, pace=Pace(last_word_s=0.1))) == ["1-1"]


def test_a_resync_is_told_once_and_what_is_known_is_not_repeated() -> None:
    resync = message(3, resync=True)
    with ScriptedGateway(
        says(message(5), close=None), says(resync, message(4), close=None), says(resync, message(6, "complete"))
    ) as gateway:
        messages = watched(gateway.url)
    assert ids(messages) == ["1-5", "1-3", "1-6"]


def test_text_pings_keep_a_quiet_socket_open() -> None:
    async def until_pinged(connection: Any) -> None:
        await connection.send(orjson.dumps(message(1)).decode())
        await asyncio.wait_for(gateway.heard_three.wait(), 60)
        await connection.send(orjson.dumps(message(2, "complete")).decode())
        await connection.close(1000)

    with ScriptedGateway(until_pinged) as gateway:
        watched(gateway.url, pace=Pace(ping_every_s=0.02))
        assert gateway.texts[:3] == ["ping", "ping", "ping"]


def test_a_busy_proxy_is_retried_no_sooner_than_it_asks() -> None:
    with ScriptedGateway(says(message(1, "complete")), refusals=[(503, {"Retry-After": "1"})]) as gateway:
        notices: list[Notice] = []
        assert ids(watched(gateway.url, notices=notices)) == ["1-1"]
    assert isinstance(notices[0], Reconnecting)
    assert 1.0 <= notices[0].delay_s < 1.1


@pytest.mark.parametrize("status", [200, 400, 404, 426])
def test_where_websocket_cannot_be_had_the_job_is_polled_with_the_same_messages(status: int) -> None:
    pages: dict[str, list[Any]] = {
        JOB: [job(), job(), job("succeeded", last_event_id="1-4", model_id=7)],
        f"{JOB}/events": [
            {"items": [message(2), message(3, "log")]},
            {"items": [message(4, "complete")]},
        ],
    }
    with ScriptedGateway(refusals=[(status, {})], pages=pages) as gateway:
        notices: list[Notice] = []
        messages = watched(gateway.url, notices=notices)
        assert len(gateway.handshakes) == 1
        assert gateway.gets[2] == f"{JOB}/events?after=1-1"
    assert ids(messages) == ["1-1", "1-2", "1-3", "1-4"]
    assert isinstance(notices[0], Polling)


def test_a_proxy_that_only_cuts_handshakes_leads_to_polling_after_some_tries() -> None:
    pages: dict[str, list[Any]] = {JOB: [job("stopped", last_event_id="1-5")]}
    with ScriptedGateway(refusals=[(502, {})] * 9, pages=pages) as gateway:
        messages = watched(gateway.url)
        assert len(gateway.handshakes) == QUICK.first_tries
    (only,) = messages
    assert isinstance(only, Progress)
    assert only.status == "stopped"


def test_polling_survives_a_server_that_is_away_for_a_while() -> None:
    pages: dict[str, list[Any]] = {
        JOB: [job(), 503, 503, 503, 503, job("succeeded", last_event_id="1-2")],
        f"{JOB}/events": [{"items": [message(2, "complete")]}],
    }
    with ScriptedGateway(refusals=[(404, {})], pages=pages) as gateway:
        notices: list[Notice] = []
        assert ids(watched(gateway.url, notices=notices)) == ["1-1", "1-2"]
    assert [type(notice) for notice in notices] == [Polling, Reconnecting, Connected]


def test_polling_says_when_history_is_gone() -> None:
    pages: dict[str, list[Any]] = {
        JOB: [job("succeeded", last_event_id="1-9")],
        f"{JOB}/events": [{"items": [message(8), message(9, "complete")], "resync": True}],
    }
    with ScriptedGateway(refusals=[(404, {})], pages=pages) as gateway:
        messages = watched(gateway.url, after="1-2")
    assert ids(messages) == ["1-2", "1-8", "1-9"]
    assert isinstance(messages[0], Progress)
    assert messages[0].resync


def test_polling_an_unknown_job_is_the_server_saying_no() -> None:
    with ScriptedGateway(refusals=[(404, {})]) as gateway, pytest.raises(NotFound):
        watched(gateway.url)


def test_a_server_that_was_never_reached_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable, match=str(port)):
        watched(f"http://127.0.0.1:{port}")


def test_a_malformed_cursor_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(UsageError, match="'yesterday' is not an event id"):
        watched("http://127.0.0.1:1", after="yesterday")


def test_a_message_from_the_future_is_named_and_not_skipped() -> None:
    with ScriptedGateway(says({"type": "telepathy"})) as gateway, pytest.raises(IncompatibleServer, match="upgrade"):
        watched(gateway.url)
