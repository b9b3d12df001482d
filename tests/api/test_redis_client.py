"""Redis' losses, as the gateway's event loop (uvloop) tells them."""

import asyncio
from typing import Any

import pytest
import uvloop
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from api.redis_client import open_client


async def _write_after_reset(pool: Any) -> None:
    """The moment in which Redis is lost: between the pool's check of a connection and the command's write."""
    connection = await pool.get_connection()
    try:
        connection._writer.transport.abort()
        await connection._writer.wait_closed()
        # uvloop closes the handle right after it has told the protocol.
        await asyncio.sleep(0)
        await connection.send_command("PING")
    finally:
        await connection.disconnect(nowait=True)
        await pool.aclose()


def test_a_command_to_a_lost_connection_says_so_in_redis_words(redis_url: str) -> None:
    with pytest.raises(RedisError, match="closed by Redis"):
        uvloop.run(_write_after_reset(open_client(redis_url).connection_pool))


def test_redis_py_alone_still_needs_that(redis_url: str) -> None:
    """If this fails, redis-py has learnt it, and `LossIsTold` can go."""
    with pytest.raises(RuntimeError, match="handler is closed"):
        uvloop.run(_write_after_reset(ConnectionPool.from_url(redis_url)))
