"""Pongs, which are not parsed like the rest: what only looks like one is."""

import time
from collections.abc import Iterator

import pytest

from shared.settings import Settings
from tests.api.raw import CLOSE, PING, PONG, TEXT, RawSocket, masked
from tests.api.serving import ThreadGateway
from tests.api.training import Training

PING_S = 1.0


@pytest.fixture
def pinging(open_settings: Settings) -> Iterator[ThreadGateway]:
    """A gateway that drops whoever doesn't answer within a second."""
    with ThreadGateway(open_settings, ping_s=PING_S) as gateway:
        yield gateway


def plain(opcode: int, payload: bytes) -> bytes:
    """A client's short frame whose mask changes nothing."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload


def test_who_answers_is_pinged_again_and_again(pinging: ThreadGateway, training: Training) -> None:
    with RawSocket(pinging, training.job_id) as raw:
        payloads = []
        for _ in range(4):
            payloads.append(raw.frame_of(PING).payload)
            raw.send(masked(PONG, payloads[-1]))
        assert len(set(payloads)) == 4


@pytest.mark.parametrize("cut", [0, 1, 5, 9])
def test_a_pong_counts_however_it_arrives(pinging: ThreadGateway, training: Training, cut: int) -> None:
    with RawSocket(pinging, training.job_id) as raw:
        for _ in range(3):
            pong = masked(PONG, raw.frame_of(PING).payload)
            for part in (pong[:cut], pong[cut:]) if cut else (masked(TEXT, b"ping") + pong,):
                raw.send(part)


def test_a_wrong_answer_is_none(pinging: ThreadGateway, training: Training) -> None:
    with RawSocket(pinging, training.job_id) as raw:
        first = raw.frame_of(PING).payload
        raw.send(masked(PONG, bytes(byte ^ 1 for byte in first)))
        with pytest.raises(ConnectionError):
            raw.frame_of(PING)


def test_a_pong_between_the_parts_of_a_message_leaves_the_message_whole(
    pinging: ThreadGateway, training: Training
) -> None:
    with RawSocket(pinging, training.job_id) as raw:
        raw.frame_of(TEXT)
        raw.send(masked(TEXT, "é".encode()[:1], fin=False))
        raw.send(masked(PONG, raw.frame_of(PING).payload))
        raw.send(masked(0, "é".encode()[1:]))
        raw.send(masked(PONG, raw.frame_of(PING).payload))
        raw.send(masked(PING, b"still here"))
        assert raw.frame_of(PONG).payload == b"still here"


def test_bytes_of_a_message_that_look_like_the_pong_are_the_messages(
    pinging: ThreadGateway, training: Training
) -> None:
    with RawSocket(pinging, training.job_id) as raw:
        raw.frame_of(TEXT)
        payload = raw.frame_of(PING).payload
        raw.send(plain(TEXT, b"0123456789" + bytes(10))[:-10])
        time.sleep(0.1)  # read by then, or the two would come as one
        raw.send(plain(PONG, payload))  # the message's other half, and no UTF-8
        assert raw.frame_of(CLOSE).code == 1007
