"""Clients that break rules, stall or flood: they harm themselves alone."""

import asyncio
import contextlib
import json
import socket as sockets
import struct
from dataclasses import replace

import pytest
from fastapi import FastAPI, Response
from websockets.asyncio.client import connect

from api import connections
from api.limits import Limits
from api.sockets import GatewaySocket
from shared.event_log import Entry
from shared.settings import Settings
from tests.api.raw import CLOSE, PING, PONG, TEXT, RawSocket, masked
from tests.api.reading import receive
from tests.api.serving import QUICK, ThreadGateway, relay_app
from tests.api.training import Training
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


def test_a_handshake_byte_by_byte_holds_up_nobody(socket_gateway: ThreadGateway, training: Training) -> None:
    """Slowloris: it gets its answer in the end, and others get theirs between two of its bytes."""
    with RawSocket(socket_gateway, training.job_id, shake=False) as slow:
        for index in range(len(slow.request) - 1):
            slow.send(slow.request[index : index + 1])
            if index % 40 == 0:
                with RawSocket(socket_gateway, training.job_id) as other:
                    assert other.frame_of(TEXT).payload.startswith(b"{")
        slow.send(slow.request[-1:])
        slow.shaken()
        assert json.loads(slow.frame_of(TEXT).payload)["status"] == "queued"


def test_a_handshake_that_never_ends_is_given_up(
    socket_gateway: ThreadGateway, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    with RawSocket(socket_gateway, training.job_id, shake=False) as silent:
        assert _is_reset(silent)
    with RawSocket(socket_gateway, training.job_id, shake=False) as stalled:
        with contextlib.suppress(ConnectionError):  # given up before it was sent
            stalled.send(stalled.request[:-2])
        assert _is_reset(stalled)


def _is_reset(raw: RawSocket) -> bool:
    try:
        return raw.ended()
    except ConnectionError:
        return True


def test_an_endless_handshake_is_refused(socket_gateway: ThreadGateway, training: Training) -> None:
    with RawSocket(socket_gateway, training.job_id, shake=False) as endless:
        endless.send(endless.request[:-2])
        assert _sent(endless, b"X-Header: " + b"x" * 1000 + b"\r\n", 100_000) < 10_000


def _sent(raw: RawSocket, data: bytes, times: int) -> int:
    """How often it could be sent."""
    for count in range(times):
        try:
            raw.send(data)
        except ConnectionError:
            return count
    return times


def test_a_flood_of_pings_is_answered_and_stays_behind_messages_of_others(
    socket_gateway: ThreadGateway, training: Training
) -> None:
    training.start()
    with RawSocket(socket_gateway, training.job_id) as flooding, RawSocket(socket_gateway, training.job_id) as other:
        flooding.frame_of(TEXT)
        other.frame_of(TEXT)
        flood = masked(PING, b"flood") * 20_000
        flooding.socket.setblocking(False)
        sent = 0
        while sent < len(flood):
            try:
                sent += flooding.socket.send(flood[sent:])
            except BlockingIOError:
                # It reads none of its pongs, so at some time the gateway reads no more of its pings.
                break
        written = training.report(3)
        got = [json.loads(other.frame_of(TEXT).payload)["id"] for _ in written]
        assert got == [str(entry.id) for entry in written]
        flooding.socket.settimeout(20)
        assert flooding.frame_of(PONG).payload == b"flood"


def test_pings_and_fragments_may_be_mixed(socket_gateway: ThreadGateway, training: Training) -> None:
    with RawSocket(socket_gateway, training.job_id) as socket:
        socket.frame_of(TEXT)
        socket.send(masked(TEXT, b"pi", fin=False) + masked(PING, b"between") + masked(0, b"ng"))
        assert socket.frame_of(PONG).payload == b"between"
        training.start()
        assert socket.frame_of(TEXT).payload.startswith(b"{")
        socket.send(masked(CLOSE, struct.pack("!H", 1000)))
        assert socket.frame_of(CLOSE).code == 1000
        assert socket.ended()


BROKEN = {
    "unmasked": (b"\x81\x02hi", 1002),
    "reserved bit": (b"\xc1" + masked(TEXT, b"hi")[1:], 1002),
    "reserved opcode": (masked(3, b"hi"), 1002),
    "continuation of nothing": (masked(0, b"hi"), 1002),
    "text inside a message": (masked(TEXT, b"a", fin=False) + masked(TEXT, b"b"), 1002),
    "fragmented ping": (masked(PING, b"a", fin=False), 1002),
    "ping of 126 bytes": (masked(PING, b"x" * 126), 1002),
    "bad UTF-8": (masked(TEXT, b"\xff\xfe"), 1007),
    "bad UTF-8 over fragments": (masked(TEXT, b"\xce", fin=False) + masked(0, b"\xce"), 1007),
    "close code 1005": (masked(CLOSE, struct.pack("!H", 1005)), 1002),
    "close of one byte": (masked(CLOSE, b"x"), 1002),
    "announced beyond 64 KiB": (b"\x81\xff" + struct.pack("!Q", 2**40) + b"mask", 1009),
    "fragments beyond 64 KiB": (masked(TEXT, b"x" * 40_000, fin=False) + masked(0, b"x" * 40_000), 1009),
    "binary": (masked(2, b"x"), 1003),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_rule_has_its_code(socket_gateway: ThreadGateway, training: Training, name: str) -> None:
    data, code = BROKEN[name]
    with RawSocket(socket_gateway, training.job_id) as socket:
        socket.frame_of(TEXT)
        socket.send(data)
        assert socket.frame_of(CLOSE).code == code
        wait_until(lambda: socket_gateway.relay.subscribers == 0, "its end")


def test_messages_beside_a_message_that_never_ends(socket_gateway: ThreadGateway, training: Training) -> None:
    """A frame of which only the head comes keeps nothing from its sender."""
    training.start()
    with RawSocket(socket_gateway, training.job_id) as socket:
        socket.frame_of(TEXT)
        socket.send(masked(TEXT, b"x" * 1000)[:10])
        written = training.report(2)
        assert [json.loads(socket.frame_of(TEXT).payload)["id"] for _ in written] == [str(e.id) for e in written]


def test_a_half_closed_peer_is_gone(socket_gateway: ThreadGateway, training: Training) -> None:
    """It can't answer pings any more."""
    with RawSocket(socket_gateway, training.job_id) as half:
        half.frame_of(TEXT)
        half.socket.shutdown(sockets.SHUT_WR)
        wait_until(lambda: socket_gateway.relay.subscribers == 0, "its end")
        assert half.ended()


async def test_a_reset_in_the_middle_of_a_burst_takes_nobody_along(
    socket_gateway: ThreadGateway, training: Training
) -> None:
    training.start()
    async with connect(socket_gateway.url(training.job_id)) as staying:
        await receive(staying)
        leaving = [await asyncio.to_thread(RawSocket, socket_gateway, training.job_id) for _ in range(5)]
        await asyncio.to_thread(wait_until, lambda: socket_gateway.relay.subscribers == 6, "all of them")
        written = []
        for one in leaving:
            # Closed with a reset: the next write to it fails.
            one.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
            written += await asyncio.to_thread(training.report, 20)
        got = await receive(staying, len(written))
        assert [message["id"] for message in got] == [str(entry.id) for entry in written]
        await asyncio.to_thread(wait_until, lambda: socket_gateway.relay.subscribers == 1, "their end")


@pytest.mark.usefixtures("kind_of_fan")
async def test_who_stops_reading_gets_its_messages_later_and_others_theirs_now(
    open_settings: Settings, training: Training
) -> None:
    """By order, not by time: the reader has every message before the stalled one has read its second."""
    training.start()
    with ThreadGateway(open_settings, replace(QUICK, send_timeout_s=60.0, queue_bytes=2**24)) as gateway:
        stalled = RawSocket(gateway, training.job_id)
        await asyncio.to_thread(stalled.frame_of, TEXT)
        async with connect(gateway.url(training.job_id)) as reading:
            await receive(reading)
            await asyncio.to_thread(
                wait_until, lambda: _all_live(gateway, training.job_id, 2), "both live", timeout_s=60
            )
            written = []
            # Until the one that doesn't read has messages in its queue: the fast way is left, and taken again below.
            while not _waiting(gateway, training.job_id):
                for _ in range(100):
                    written.append(await asyncio.to_thread(training.say, "x" * 4000))
                got = await receive(reading, 100, timeout_s=60)
                assert [message["id"] for message in got] == [str(entry.id) for entry in written[-100:]]
            texts = [await asyncio.to_thread(stalled.frame_of, TEXT) for _ in written]
            assert [json.loads(text.payload)["id"] for text in texts] == [str(entry.id) for entry in written]
            written = await asyncio.to_thread(training.report, 5)
            texts = [await asyncio.to_thread(stalled.frame_of, TEXT) for _ in written]
            assert [json.loads(text.payload)["id"] for text in texts] == [str(entry.id) for entry in written]
        stalled.close()


@pytest.mark.parametrize("is_at_rest", [False, True])
def test_who_is_lost_has_left_its_level_before_its_descriptor_can_be_another_s(
    open_settings: Settings, training: Training, monkeypatch: pytest.MonkeyPatch, is_at_rest: bool
) -> None:
    training.start()
    still_level: list[list[object]] = []
    lost = GatewaySocket.connection_lost

    def connection_lost(socket: GatewaySocket, exc: Exception | None) -> None:
        lost(socket, exc)
        lines = gateway.relay.channels._channels[training.job_id].level._lines.values()
        still_level.append([line for line in lines if line.transport is socket.transport])

    monkeypatch.setattr(GatewaySocket, "connection_lost", connection_lost)
    with (
        ThreadGateway(open_settings, replace(QUICK, sweep_s=0.05 if is_at_rest else 60.0)) as gateway,
        RawSocket(gateway, training.job_id) as raw,
        RawSocket(gateway, training.job_id) as other,
    ):
        for one in (raw, other):
            one.frame_of(TEXT)

        def both_level() -> bool:
            training.report()
            level = gateway.relay.channels.level(training.job_id)
            return level is not None and (level.count, level.resting) == (2, 2 if is_at_rest else 0)

        wait_until(both_level, "both level")
        raw.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
        wait_until(lambda: still_level, "the end of the connection")
        assert still_level == [[]]
        last = str(training.report()[-1].id)
        while json.loads(other.frame_of(TEXT).payload)["id"] != last:
            pass


def test_messages_overtake_no_answer_that_was_asked_for_on_the_same_connection(
    open_settings: Settings, training: Training
) -> None:
    """The upgrade comes while the transport still holds most of an answer that its client hasn't read."""
    training.start()
    body = b"B" * 32_000_000

    def app_with_large_answers(settings: Settings, limits: Limits) -> FastAPI:
        app = relay_app(settings, limits)
        app.add_api_route("/large", lambda: Response(body))
        return app

    patient = replace(QUICK, send_timeout_s=60.0, queue_bytes=2**24)
    with (
        ThreadGateway(open_settings, patient, ping_s=60, make_app=app_with_large_answers) as gateway,
        RawSocket(gateway, training.job_id, "?after=0", shake=False) as raw,
    ):
        raw.send(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = raw.socket.recv(8192)
        raw.send(raw.request)
        wait_until(lambda: _sockets(gateway), "the upgrade")
        for _ in range(300):
            training.say("x" * 1000)
            got += raw.socket.recv(8192)
        head = got.index(b"\r\n\r\n") + 4
        while len(got) < head + len(body):
            got += raw.socket.recv(head + len(body) - len(got))
        assert got[head:] == body
        raw.shaken()
        texts = [raw.frame_of(TEXT) for _ in training.ids]
        assert [json.loads(text.payload)["id"] for text in texts] == training.ids


def test_one_who_may_write_for_a_moment_only_gets_all_in_the_end(open_settings: Settings, training: Training) -> None:
    """It stalls again before whoever waited for it has had a turn."""
    training.start()
    patient = replace(QUICK, send_timeout_s=60.0, queue_bytes=2**24)
    with ThreadGateway(open_settings, patient, ping_s=60) as gateway, RawSocket(gateway, training.job_id) as raw:
        raw.frame_of(TEXT)
        written: list[Entry] = []
        while not _waiting(gateway, training.job_id):
            written.extend(training.say("x" * 4000) for _ in range(50))
        (whole,) = _sockets(gateway)

        def for_a_moment() -> None:
            whole.resume_writing()
            whole.pause_writing()

        whole.loop.call_soon_threadsafe(for_a_moment)
        texts = [raw.frame_of(TEXT) for _ in written]
        assert [json.loads(text.payload)["id"] for text in texts] == [str(entry.id) for entry in written]


def _sockets(gateway: ThreadGateway) -> list[GatewaySocket]:
    return [connection for connection in gateway.connections if isinstance(connection, GatewaySocket)]


def _all_live(gateway: ThreadGateway, job_id: int, count: int) -> bool:
    """Or at rest already."""
    channels = gateway.relay.channels
    subscribers, level = channels.subscribers(job_id), channels.level(job_id)
    resting = level.resting if level is not None else 0
    return len(subscribers) + resting == count and all(subscriber.outbox.is_idle for subscriber in subscribers)


def _waiting(gateway: ThreadGateway, job_id: int) -> bool:
    return any(not subscriber.outbox.is_idle for subscriber in gateway.relay.channels.subscribers(job_id))
