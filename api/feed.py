"""The one pub/sub connection of this process: subscriptions for all jobs, confirmed, and made again after a break."""

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

import redis.asyncio
import structlog
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from api import tasks
from api.limits import Limits

logger = structlog.get_logger(__name__)

LONGEST_BACKOFF_S = 2.0
# A burst that is already in the read buffer would otherwise be dispatched in one go, and queues of subscribers whose
# writers had no turn would look like those of slow consumers.
MESSAGES_PER_TURN = 64

OnMessage = Callable[[bytes, bytes], None]
OnSubscribed = Callable[[bytes], None]


class Feed:
    """Calls `on_message(channel, data)` for every message, `on_subscribed(channel)` at each confirmed SUBSCRIBE.

    The second call also comes for every channel after a reconnect: what was published in between was not heard, so
    it means "read the log again". Messages of a subscribed pattern go to `on_pattern_message`.
    """

    def __init__(
        self,
        url: str,
        limits: Limits,
        *,
        on_message: OnMessage,
        on_pattern_message: OnMessage,
        on_subscribed: OnSubscribed,
    ) -> None:
        self._pool = redis.asyncio.ConnectionPool.from_url(
            url,
            protocol=2,
            socket_connect_timeout=limits.redis_patience_s,
            socket_timeout=limits.redis_patience_s,
            retry=Retry(NoBackoff(), 0),  # reconnecting is done here, where it is seen
        )
        self._limits = limits
        self._on_message = on_message
        self._on_pattern_message = on_pattern_message
        self._on_subscribed = on_subscribed
        self._wanted: dict[bytes, str] = {}
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._confirmed: set[bytes] = set()
        self._connection: AbstractConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._heard_at = 0.0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="feed")

    async def stop(self) -> None:
        if self._task is not None:
            await tasks.end([self._task])
        await self._pool.aclose()

    async def subscribe(self, channel: bytes, *, is_pattern: bool = False) -> bool:
        """Whether Redis has confirmed the subscription. False (Redis is away): it is made when Redis is back."""
        self._wanted[channel] = "PSUBSCRIBE" if is_pattern else "SUBSCRIBE"
        if channel in self._confirmed:
            return True
        if self._connection is None:
            return False
        waiting = self._waiting.get(channel)
        if waiting is None:
            waiting = self._waiting[channel] = asyncio.get_running_loop().create_future()
            await self._send(self._wanted[channel], channel)
        try:
            async with asyncio.timeout(self._limits.redis_patience_s):
                await asyncio.shield(waiting)  # others wait for the same confirmation
        except TimeoutError:
            return False
        return True

    def is_confirmed(self, channel: bytes) -> bool:
        """Whether whatever is published there is heard now; false from the moment a break is seen."""
        return channel in self._confirmed

    async def unsubscribe(self, channel: bytes) -> None:
        verb = self._wanted.pop(channel, None)
        self._confirmed.discard(channel)
        # Whoever comes next must not wait for a confirmation that this takes back.
        waiting = self._waiting.pop(channel, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        if verb is not None:
            await self._send("PUNSUBSCRIBE" if verb == "PSUBSCRIBE" else "UNSUBSCRIBE", channel)

    async def _send(self, verb: str, channel: bytes) -> None:
        if self._connection is None:
            return
        try:
            await self._connection.send_command(verb, channel)
        except (RedisError, OSError) as error:
            # The reader sees the same break, and everything that is wanted is subscribed again.
            logger.info("feed: not sent", verb=verb, error=str(error))

    async def _run(self) -> None:
        failures = 0
        while True:
            connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.connect()
                failures = 0
                await self._serve(connection)
            except (RedisError, OSError) as error:
                if failures == 0:
                    logger.warning("feed: Redis is away", error=str(error))
                failures = min(failures + 1, 10)
            except Exception:
                # Deaf for ever would be worse than a new connection.
                logger.exception("feed: failed; connecting again")
                failures = min(failures + 1, 10)
            finally:
                self._connection = None
                self._confirmed.clear()
                await connection.disconnect(nowait=True)
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(LONGEST_BACKOFF_S, 0.1 * 2**failures))

    async def _serve(self, connection: AbstractConnection) -> None:
        """Until the connection breaks; raises what broke it."""
        self._heard_at = asyncio.get_running_loop().time()
        self._connection = connection
        for verb in ("SUBSCRIBE", "PSUBSCRIBE"):
            channels = [channel for channel, wanted in self._wanted.items() if wanted == verb]
            if channels:
                await connection.send_command(verb, *channels)
        halves = {asyncio.create_task(self._read(connection)), asyncio.create_task(self._keep_alive(connection))}
        try:
            done, _ = await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tasks.end(halves)
        for half in done:
            half.result()

    async def _keep_alive(self, connection: AbstractConnection) -> None:
        """A frozen Redis keeps its connections open; only silence tells."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._limits.feed_ping_s)
            if loop.time() - self._heard_at > self._limits.feed_silence_s:
                raise RedisConnectionError(f"no answer for {self._limits.feed_silence_s:g} s")
            await connection.send_command("PING", check_health=False)

    async def _read(self, connection: AbstractConnection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for _ in range(MESSAGES_PER_TURN):
                answer = await connection.read_response(
                    disable_decoding=True, timeout=math.inf, disconnect_on_error=False
                )
                self._heard_at = loop.time()
                self._handle(answer)
            await asyncio.sleep(0)

    def _handle(self, answer: Any) -> None:
        match answer:
            case [b"message", bytes(channel), bytes(data)]:
                self._on_message(channel, data)
            case [b"pmessage", _, bytes(channel), bytes(data)]:
                self._on_pattern_message(channel, data)
            case [b"subscribe" | b"psubscribe", bytes(channel), _]:
                self._confirm(channel)
            case _:  # pongs, and confirmations of UNSUBSCRIBE
                pass

    def _confirm(self, channel: bytes) -> None:
        waiting = self._waiting.pop(channel, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        if channel in self._wanted:
            self._confirmed.add(channel)
            self._on_subscribed(channel)
