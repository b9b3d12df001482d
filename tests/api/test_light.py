"""Sockets at rest: nobody outside can tell them from others, whatever happens to them."""

import gc
import json
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from api.closes import SERVICE_RESTART
from api.sockets import GatewaySocket
from shared.event_log import log_key, slots_key
from shared.settings import Settings
from tests.api.raw import CLOSE, PING, PONG, TEXT, Frame, RawSocket, masked
from tests.api.serving import QUICK, ThreadGateway
from tests.api.training import Training
from tests.waiting import wait_until


def wait_light(gateway: ThreadGateway, count: int = 1) -> None:
    """Until so many sockets are at rest, and no other is there."""
    wait_until(lambda: (len(gateway.relay.lights), gateway.relay.subscribers) == (count, count), f"{count} at rest")


def wait_awake(gateway: ThreadGateway) -> None:
    wait_until(lambda: len(gateway.relay.lights) == 0, "nobody at rest")


def ids(raw: RawSocket, count: int) -> list[str]:
    return [json.loads(raw.frame_of(TEXT).payload)["id"] for _ in range(count)]


def reason(frame: Frame) -> tuple[int, str]:
    return frame.code, frame.payload[2:].decode()


@pytest.fixture
def socket_gateway(open_settings: Settings) -> Iterator[ThreadGateway]:
    """A patient one: these clients answer no pings."""
    with ThreadGateway(open_settings, ping_s=60) as gateway:
        yield gateway


@pytest.fixture
def light(socket_gateway: ThreadGateway, training: Training) -> Iterator[RawSocket]:
    """A client whose first message has come, and whose socket is at rest."""
    training.start()
    with RawSocket(socket_gateway, training.job_id) as raw:
        raw.frame_of(TEXT)
        wait_light(socket_gateway)
        yield raw


def test_events_reach_it_at_rest_and_the_last_one_with_its_close(
    light: RawSocket, socket_gateway: ThreadGateway, training: Training
) -> None:
    written = [str(entry.id) for entry in training.report(3)]
    assert ids(light, 3) == written
    assert len(socket_gateway.relay.lights) == 1
    last = training.finish()
    assert ids(light, 1) == [str(last.id)]
    assert reason(light.frame_of(CLOSE)) == (1000, "succeeded")
    wait_until(lambda: training.client.zcard(slots_key(training.job_id)) == 0, "its place")


def test_a_client_that_speaks_wakes_it_and_it_rests_again(
    light: RawSocket, socket_gateway: ThreadGateway, training: Training
) -> None:
    for opcode, payload in ((PING, b"still there?"), (TEXT, b"hello"), (TEXT, b"")):
        light.send(masked(opcode, payload))
        if opcode == PING:
            assert light.frame_of(PONG).payload == payload
        written = [str(entry.id) for entry in training.report(2)]
        assert ids(light, 2) == written
        wait_light(socket_gateway)


def test_a_message_in_parts_is_one_however_it_comes(
    light: RawSocket, socket_gateway: ThreadGateway, training: Training
) -> None:
    whole = masked(TEXT, "é".encode()[:1], fin=False) + masked(0, "é".encode()[1:])
    for byte in whole:
        light.send(bytes((byte,)))
        time.sleep(0.02)  # sweeps in between, none of which may put it to rest
    wait_light(socket_gateway)
    training.report()
    assert ids(light, 1) == [str(training.last)]


def test_a_rule_broken_at_rest_is_answered_as_ever(light: RawSocket) -> None:
    light.send(b"\x81\x02hi")  # not masked
    assert light.frame_of(CLOSE).code == 1002


def test_binary_at_rest_is_refused(light: RawSocket) -> None:
    light.send(masked(2, b"\x00"))
    assert reason(light.frame_of(CLOSE)) == (1003, "text frames only")


def test_a_goodbye_at_rest_gives_the_place_back(
    light: RawSocket, socket_gateway: ThreadGateway, training: Training
) -> None:
    light.send(masked(CLOSE, b"\x03\xe8"))
    assert light.frame_of(CLOSE).code == 1000
    wait_until(lambda: socket_gateway.relay.subscribers == 0, "its end")
    wait_until(lambda: training.client.zcard(slots_key(training.job_id)) == 0, "its place")


def test_a_client_that_hangs_up_at_rest_leaves_nothing(
    light: RawSocket, socket_gateway: ThreadGateway, training: Training
) -> None:
    light.close()
    wait_until(lambda: socket_gateway.relay.subscribers == 0, "its end")
    wait_until(lambda: training.client.zcard(slots_key(training.job_id)) == 0, "its place")
    wait_until(lambda: not training.client.pubsub_channels(), "the end of the subscription")


def test_a_stop_of_the_gateway_is_told_to_all_at_rest(socket_gateway: ThreadGateway, training: Training) -> None:
    training.start()
    with ExitStack() as stack:
        lights = [stack.enter_context(RawSocket(socket_gateway, training.job_id)) for _ in range(5)]
        wait_light(socket_gateway, len(lights))
        socket_gateway._server.should_exit = True
        for light in lights:
            frame = light.frame_of(CLOSE)
            assert reason(frame) == (SERVICE_RESTART.code, SERVICE_RESTART.reason)
            light.send(masked(CLOSE, frame.payload))
            assert light.ended()
        wait_until(lambda: not socket_gateway.connections, "the end of all that the server waits for")


def test_who_answers_at_rest_stays_and_who_does_not_is_gone(open_settings: Settings, training: Training) -> None:
    with ThreadGateway(open_settings, ping_s=1.0) as gateway, ExitStack() as stack:
        answering, silent = (stack.enter_context(RawSocket(gateway, training.job_id)) for _ in range(2))
        wait_light(gateway, 2)
        payloads = []
        for _ in range(4):
            payloads.append(answering.frame_of(PING).payload)
            answering.send(masked(PONG, payloads[-1]))
        assert len(set(payloads)) == 4
        with pytest.raises(ConnectionError):
            silent.frame_of(CLOSE)
        wait_light(gateway, 1)


@pytest.mark.parametrize("change", ["wrong", "late"])
def test_a_wrong_pong_at_rest_is_none(open_settings: Settings, training: Training, change: str) -> None:
    with ThreadGateway(open_settings, ping_s=1.0) as gateway, RawSocket(gateway, training.job_id) as raw:
        wait_light(gateway)
        first = raw.frame_of(PING).payload
        if change == "late":
            raw.send(masked(PONG, first))
            raw.frame_of(PING)
            answer = first
        else:
            answer = bytes(byte ^ 1 for byte in first)
        raw.send(masked(PONG, answer))
        with pytest.raises(ConnectionError):
            raw.frame_of(CLOSE)


def test_one_that_stops_reading_at_rest_is_a_slow_consumer_and_delays_nobody(
    open_settings: Settings, training: Training
) -> None:
    training.start()
    limits = replace(QUICK, send_timeout_s=0.5)
    with ThreadGateway(open_settings, limits, ping_s=60) as gateway, ExitStack() as stack:
        stalled, reading = (stack.enter_context(RawSocket(gateway, training.job_id)) for _ in range(2))
        for raw in (stalled, reading):
            raw.frame_of(TEXT)
        wait_light(gateway, 2)
        written: list[str] = []
        while gateway.relay.subscribers == 2 and len(written) < 2_000:
            written.append(str(training.say("x" * 8000).id))
            assert ids(reading, 1) == written[-1:]
        wait_light(gateway, 1)
        got = ids_until_end(stalled)
        assert got == written[: len(got)], "what it has got has no hole"


def ids_until_end(raw: RawSocket) -> list[str]:
    """Of what had been written to it; nothing says for certain where that ends, for the kernel gives it up."""
    raw.socket.settimeout(1)
    got = []
    try:
        while (frame := raw.frame()).opcode != CLOSE:
            if frame.opcode == TEXT:
                got.append(json.loads(frame.payload)["id"])
    except (ConnectionError, TimeoutError):
        pass  # aborted: for too long it has read nothing
    return got


def test_one_that_reads_again_has_every_message_and_rests_again(
    light: RawSocket, socket_gateway: ThreadGateway, training: Training
) -> None:
    written = []
    while len(socket_gateway.relay.lights) == 1:
        written.append(str(training.say("x" * 8000).id))
    written += [str(entry.id) for entry in training.report(5)]
    assert ids(light, len(written)) == written
    wait_light(socket_gateway)


def test_what_was_published_in_a_break_is_read_by_those_at_rest(
    light: RawSocket, socket_gateway: ThreadGateway, training: Training
) -> None:
    entry = training.report(ship=False)[0]
    training.append(entry, announce=False)  # nobody hears it
    written = [str(entry.id), *(str(entry.id) for entry in training.report(2))]
    assert ids(light, 3) == written
    client: Any = training.client
    for connection in client.client_list(_type="pubsub"):
        client.client_kill_filter(_id=connection["id"])
    written = [str(entry.id) for entry in training.report(2)]
    assert ids(light, 2) == written


def test_a_terminal_state_that_only_sql_knows_wakes_it(
    light: RawSocket, socket_gateway: ThreadGateway, training: Training
) -> None:
    last = training.finish(ship=False)
    assert ids(light, 1) == [str(last.id)]
    assert reason(light.frame_of(CLOSE)) == (1000, "succeeded")


def test_an_event_that_was_written_unheard_is_found_by_the_reconcile_pass(light: RawSocket, training: Training) -> None:
    entry = training.report(ship=False)[0]
    training.append(entry, announce=False)
    assert ids(light, 1) == [str(entry.id)]
    assert training.client.exists(log_key(training.job_id))


def test_idleness_ends_it_on_time_and_messages_do_not_let_it(open_settings: Settings, training: Training) -> None:
    training.start()
    limits = replace(QUICK, idle_timeout_s=2.5)
    with ThreadGateway(open_settings, limits, ping_s=1.0) as gateway, RawSocket(gateway, training.job_id) as raw:
        raw.frame_of(TEXT)
        wait_light(gateway)
        began = time.monotonic()
        while time.monotonic() - began < 3.5:
            training.say("still training")
            answered(raw, str(training.last))
        while (frame := raw.frame()).opcode != CLOSE:
            if frame.opcode == PING:
                raw.send(masked(PONG, frame.payload))
        assert reason(frame) == (4408, "idle timeout")


def answered(raw: RawSocket, identifier: str) -> None:
    """Answers pings until the message comes."""
    while (frame := raw.frame()).opcode != TEXT:
        raw.send(masked(PONG, frame.payload))
    assert json.loads(frame.payload)["id"] == identifier


def test_nothing_of_the_whole_socket_is_left_for_the_collector(open_settings: Settings, training: Training) -> None:
    whole: list[weakref.ref[GatewaySocket]] = []
    opened = GatewaySocket.listen

    def listen(socket: GatewaySocket, listener: Any) -> None:
        whole.append(weakref.ref(socket))
        opened(socket, listener)

    with pytest.MonkeyPatch.context() as patched, ThreadGateway(open_settings, ping_s=60) as gateway:
        patched.setattr(GatewaySocket, "listen", listen)
        gc.disable()
        try:
            with RawSocket(gateway, training.job_id) as raw:
                raw.frame_of(TEXT)
                wait_light(gateway)
                raw.send(masked(PING, b"wake"))
                raw.frame_of(PONG)
                wait_light(gateway)
                wait_until(lambda: [socket() for socket in whole] == [None, None], "both sockets' end")
        finally:
            gc.enable()
