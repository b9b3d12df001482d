"""Commands to Redis from the event loop: patience, turns, and a lost connection that says so."""

from collections.abc import Iterable

import redis.asyncio
import redis.asyncio.retry
from redis.asyncio.connection import AbstractConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

# A Redis that is away must not delay an answer that SQL can give.
PATIENCE_S = 0.4
CONNECTIONS = 32
# Waiting for one of them is no sign that Redis is away.
_TURN_S = 10


def open_client(url: str) -> redis.asyncio.Redis:
    """Connects when it is used. Every command raises RedisError or OSError when Redis is away, and nothing else."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        # A crowd (subscribers that come back, long polls that wake) takes turns; it opens no connection each.
        max_connections=CONNECTIONS,
        timeout=_TURN_S,
        socket_timeout=PATIENCE_S,
        socket_connect_timeout=PATIENCE_S,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
    )
    pool.connection_class = type("LossIsTold", (LossIsTold, pool.connection_class), {})
    return redis.asyncio.Redis.from_pool(pool)


class LossIsTold(AbstractConnection):
    """A connection (TCP, TLS or Unix) for uvloop, which answers a write to a lost connection with a RuntimeError.

    "The handler is closed" comes when Redis resets a connection between its being taken from the pool and the write.
    redis-py passes it on (8.1), past whoever expects RedisError: a socket was closed with 1011 for it.
    """

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        writer = self._writer
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            if writer is None or not writer.is_closing():
                raise
            raise RedisConnectionError("the connection was closed by Redis") from error
