"""Ten thousand connects leave no socket, task, subscription, place or open file behind."""

import asyncio
import gc
import logging
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from api.connections import GatewayConnection
from api.conversation import Conversation
from api.light import LightSocket
from api.sockets import GatewaySocket
from api.subscriber import Subscriber
from shared.event_log import slots_key
from shared.settings import Settings
from tests.api.raw import CLOSE, TEXT, RawSocket, masked
from tests.api.serving import QUICK, ThreadGateway
from tests.api.training import Training
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(600)

CONNECTS = 10_000
CLIENTS = 8
# What a first round leaves for good: caches, threads, grown dictionaries.
WARM = 500
# Idle worker threads keep what they did last, and Redis' and SQL's pools their connections.
FEW = 300


def test_ten_thousand_connects_leave_nothing_behind(
    open_settings: Settings, training: Training, caplog: pytest.LogCaptureFixture
) -> None:
    # pytest keeps every line that uvicorn says of a connection.
    caplog.set_level(logging.WARNING, logger="uvicorn.error")
    training.start()
    # A place is given back a moment after its socket's end, when the next client is already there.
    with ThreadGateway(open_settings, replace(QUICK, connections_per_job=1000)) as gateway:
        _connect(gateway, training, WARM)
        _wait_for_nobody(gateway, training)
        before = _left()
        _connect(gateway, training, CONNECTS - WARM)
        _wait_for_nobody(gateway, training)
        deadline = time.monotonic() + 60
        while (more := _more_than(before)) and time.monotonic() < deadline:
            time.sleep(1)
        assert not more


def _connect(gateway: ThreadGateway, training: Training, count: int) -> None:
    """Eight clients one after another, a third of which say goodbye, a third hang up, a third break a rule."""

    def one(number: int) -> None:
        for index in range(number, count, CLIENTS):
            with RawSocket(gateway, training.job_id) as socket:
                socket.frame_of(TEXT)
                if index % 3:
                    socket.send(masked(CLOSE, b"\x03\xe8") if index % 3 == 1 else b"\x81\x02hi")
                    socket.frame_of(CLOSE)

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(one, range(CLIENTS)))


def _wait_for_nobody(gateway: ThreadGateway, training: Training) -> None:
    wait_until(lambda: gateway.relay.subscribers == 0, "the end of all sockets", timeout_s=60)
    wait_until(lambda: not training.client.pubsub_channels(), "the end of the subscription", timeout_s=60)
    wait_until(lambda: training.client.zcard(slots_key(training.job_id)) == 0, "the end of all places", timeout_s=60)
    wait_until(
        lambda: not gateway.relay.channels.subscribers(training.job_id), "the end of all subscribers", timeout_s=60
    )


def _more_than(before: Counter[str]) -> dict[str, int]:
    """What there are clearly more of now."""
    return {kind: count for kind, count in _left().items() if count > before[kind] + FEW}


def _left() -> Counter[str]:
    """Living objects of each kind that a connection has, and open files; other tests may have left some, too."""
    gc.collect()
    kinds = (GatewaySocket, GatewayConnection, Conversation, LightSocket, Subscriber, asyncio.Task)
    found = Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds))
    return found + Counter(files=len(os.listdir("/proc/self/fd")))
