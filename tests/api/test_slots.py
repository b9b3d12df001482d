"""The limit of 10 subscribers per job, over all gateways."""

import asyncio
import os
import signal
import time

import pytest
import redis.asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from api.limits import Limits
from api.slots import Slot, Slots
from shared.embedded import RedisServer
from shared.event_log import slots_key
from shared.settings import Settings
from tests.api.reading import drain, receive
from tests.api.serving import gateway_process
from tests.api.training import Training

pytestmark = pytest.mark.anyio

QUICK = Limits(slot_s=1.0, slot_refresh_s=0.2)


async def test_50_clients_race_for_10_places_over_two_gateways_and_a_killed_one_frees_its_own(
    open_settings: Settings, training: Training
) -> None:
    with gateway_process(open_settings) as (first, first_url), gateway_process(open_settings) as (_, second_url):
        urls = [url(training.job_id) for url in (first_url, second_url)] * 25
        tries = await asyncio.gather(*(_try(url) for url in urls))
        held = [socket for socket, _ in tries if socket is not None]
        refused = [close for _, close in tries if close is not None]
        assert len(held) == 10
        assert refused == [(1013, "too many connections")] * 40

        lost = [socket for socket in held if socket.remote_address[1] == _port(first_url(1))]
        os.kill(first.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        back: list[ClientConnection] = []
        while len(back) < len(lost):
            # Free after 8 s (the places' score in Redis); the rest is what a busy machine needs to connect.
            assert time.monotonic() - killed_at < 90, f"{len(back)} of {len(lost)} places came back"
            socket, _ = await _try(second_url(training.job_id))
            if socket is not None:
                back.append(socket)
        assert (await _try(second_url(training.job_id)))[1] == (1013, "too many connections")
        for socket in [*held, *back]:
            await socket.close()


async def _try(url: str) -> tuple[ClientConnection | None, tuple[int, str] | None]:
    """An open socket that has had its first message, or how it was closed."""
    socket = await connect(url, open_timeout=20)
    try:
        await receive(socket, timeout_s=20)
    except ConnectionClosed:
        return None, (await drain(socket))[1:]
    return socket, None


def _port(url: str) -> int:
    return int(url.split(":")[2].split("/")[0])


async def test_a_refresh_keeps_places_and_puts_them_back_into_a_wiped_redis(redis_url: str) -> None:
    client = redis.asyncio.Redis.from_url(redis_url)
    slots = Slots(client, QUICK)
    slots.start()
    slot = await slots.acquire(1)
    assert slot is not None
    await client.flushall()
    await _until_members(client, 1, {slot.member})
    await _until_refreshed(client, slot)
    await slots.stop()
    assert await client.zcard(slots_key(1)) == 0
    await client.aclose()


async def test_without_redis_the_limit_counts_per_process(redis_url: str, redis_server: RedisServer) -> None:
    client = redis.asyncio.Redis.from_url(redis_url, socket_timeout=0.3)
    slots = Slots(client, QUICK)
    redis_server.kill()
    try:
        taken = await asyncio.gather(*(slots.acquire(1) for _ in range(15)))
        held = [slot for slot in taken if slot is not None]
        assert len(held) == 10
        await slots.release(held[0])
        assert await slots.acquire(1) is not None
        assert await slots.acquire(2) is not None
    finally:
        redis_server.start()
    await slots.stop()
    await client.aclose()


async def _until_members(client: redis.asyncio.Redis, job_id: int, members: set[str]) -> None:
    async with asyncio.timeout(30):
        while set(await client.zrange(slots_key(job_id), 0, -1)) != {member.encode() for member in members}:
            pass


async def _until_refreshed(client: redis.asyncio.Redis, slot: Slot) -> None:
    before = await client.zscore(slots_key(slot.job_id), slot.member)
    assert before is not None
    async with asyncio.timeout(30):
        while (await client.zscore(slots_key(slot.job_id), slot.member) or 0.0) <= before:
            pass
