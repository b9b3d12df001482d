"""The thin end of a pub/sub connection: redis-py opens it and logs in, then its bytes go straight through hiredis."""

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

# hiredis moves all that it has not parsed yet to the front of its buffer, again and again: of 230 KB in one piece a
# message took 0.45 us, of the same in small ones 0.15 (measured 2026-11-29, hiredis 3.5).
_PIECE_BYTES = 16 * 1024
_NO_MORE = object()


class RedisPushes(asyncio.Protocol):
    """Calls `on_answers` with all that Redis said in one read, in order.

    redis-py's own reader is made for commands and answers: a coroutine and several calls for each, which cost more
    than the rest of the relay together (measured 2026-11-24).
    """

    def __init__(self, connection: AbstractConnection, on_answers: Callable[[list[Any]], None]) -> None:
        self._on_answers = on_answers
        self._parser = hiredis.Reader(notEnoughData=_NO_MORE)
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self.heard_at = self._loop.time()
        """When the last bytes came, by the loop's clock."""
        # An open connection has a writer, and after its log-in nothing that it still waits for.
        writer = connection._writer
        if writer is None:
            raise RedisConnectionError("closed before it was used")
        self._transport: asyncio.WriteTransport = writer.transport
        self._transport.set_protocol(self)

    def send(self, *words: bytes | str) -> None:
        """Writes a command; nothing when the connection is lost, which `lost` tells."""
        # uvloop raises RuntimeError ("the handler is closed") at a write to what is closed.
        if not self._transport.is_closing():
            self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]  # typed for one word

    async def lost(self) -> None:
        """Until the connection is; raises what broke it, also an exception of the callbacks."""
        await self._lost

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        parser = self._parser
        answers: list[Any] = []
        try:
            try:
                for start in range(0, len(data), _PIECE_BYTES):
                    parser.feed(data[start : start + _PIECE_BYTES])
                    answers += iter(parser.gets, _NO_MORE)
            finally:
                self._on_answers(answers)  # also what came before something that is none
        except Exception as error:
            self._end(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or RedisConnectionError("closed by Redis"))

    def _end(self, error: Exception) -> None:
        if not self._lost.done():
            self._lost.set_exception(error)
            self._lost.exception()  # looked at, should nobody wait for it any more
