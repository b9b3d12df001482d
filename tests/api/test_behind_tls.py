"""A gateway behind a proxy that ends TLS acts as without one: messages, pings, closes, at rest and awake."""

import asyncio
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from shared.settings import Settings
from tests.api.reading import drain, ids, receive
from tests.api.serving import ThreadGateway
from tests.api.tls_proxy import tls_proxy
from tests.api.training import Training
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

PING_S = 1.0


async def test_every_message_arrives_once_and_the_close_with_its_reason(
    open_settings: Settings, training: Training, tmp_path: Path
) -> None:
    training.start()
    with ThreadGateway(open_settings, ping_s=PING_S) as gateway:
        async with (
            tls_proxy(tmp_path, gateway.port) as (port, trust),
            connect(gateway.url(training.job_id).replace(f"ws://127.0.0.1:{gateway.port}", f"wss://127.0.0.1:{port}"),
                    ssl=trust) as socket,
        ):  # fmt: skip
            await receive(socket)
            written = []
            for length in (1, 100, 125, 126, 5000, 60_000):
                # In a thread: this one answers the gateway's pings meanwhile.
                written.append(str((await asyncio.to_thread(training.say, "x" * length)).id))
                written += [str(entry.id) for entry in await asyncio.to_thread(training.report, 3)]
            assert ids(await receive(socket, len(written))) == written

            await asyncio.to_thread(wait_until, lambda: len(gateway.relay.lights) == 1, "its rest")
            await asyncio.sleep(4 * PING_S)  # it answers the pings, or would be gone
            await asyncio.wait_for(await socket.ping(), 30)
            await socket.send(["in ", "three ", "parts"])
            written = [str(entry.id) for entry in training.report(2)]
            assert ids(await receive(socket, 2)) == written

            last = training.finish()
            messages, code, reason = await drain(socket)
            assert (ids(messages), code, reason) == ([str(last.id)], 1000, "succeeded")
        wait_until(lambda: gateway.relay.subscribers == 0, "its end")


async def test_a_stalled_client_behind_it_is_closed_and_delays_nobody(
    open_settings: Settings, training: Training, tmp_path: Path
) -> None:
    training.start()
    with ThreadGateway(open_settings, ping_s=PING_S) as gateway:
        url = gateway.url(training.job_id)
        async with tls_proxy(tmp_path, gateway.port) as (port, trust):
            stalled = await connect(
                url.replace(f"ws://127.0.0.1:{gateway.port}", f"wss://127.0.0.1:{port}"),
                ssl=trust, max_queue=1, ping_interval=None, close_timeout=0.1,
            )  # fmt: skip
            async with connect(url) as reading:
                await receive(reading)
                sent = 0
                while gateway.relay.subscribers == 2 and sent < 3_000:
                    event = training.say("x" * 8000)
                    assert ids(await receive(reading)) == [str(event.id)]
                    sent += 1
                assert gateway.relay.subscribers == 1
            await stalled.close()
