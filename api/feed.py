"""The one pub/sub connection of this process: subscriptions for all jobs, confirmed, and made again after a break."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import hiredis
import redis.asyncio
import structlog
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from api import tasks
from api.limits import Limits
from api.redis_pushes import RedisPushes

logger = structlog.get_logger(__name__)

LONGEST_BACKOFF_S = 2.0

OnSubscribed = Callable[[bytes], None]
OnMessages = Callable[[dict[bytes, list[bytes]]], None]
OnPatternMessage = Callable[[bytes, bytes], None]


class Feed:
    """Calls `on_messages` with all that came in one read, by channel, `on_subscribed(channel)` at each confirmed
    SUBSCRIBE, `on_pattern_message(channel, data)` for each message of a subscribed pattern.

    `on_subscribed` also comes for every channel after a reconnect: what was published in between was not heard, so
    it means "read the log again".
    """

    def __init__(
        self,
        url: str,
        limits: Limits,
        *,
        on_messages: OnMessages,
        on_pattern_message: OnPatternMessage,
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
        self._on_messages = on_messages
        self._on_pattern_message = on_pattern_message
        self._on_subscribed = on_subscribed
        self._wanted: dict[bytes, str] = {}
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._confirmed: set[bytes] = set()
        self._pushes: RedisPushes | None = None
        self._task: asyncio.Task[None] | None = None

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
        if self._pushes is None:
            return False
        waiting = self._waiting.get(channel)
        if waiting is None:
            waiting = self._waiting[channel] = asyncio.get_running_loop().create_future()
            self._pushes.send(self._wanted[channel], channel)
        try:
            async with asyncio.timeout(self._limits.redis_patience_s):
                await asyncio.shield(waiting)  # others wait for the same confirmation
        except TimeoutError:
            return False
        return True

    def is_confirmed(self, channel: bytes) -> bool:
        """Whether whatever is published there is heard now; false from the moment a break is seen."""
        return channel in self._confirmed

    def unsubscribe(self, channel: bytes) -> None:
        verb = self._wanted.pop(channel, None)
        self._confirmed.discard(channel)
        # Whoever comes next must not wait for a confirmation that this takes back.
        waiting = self._waiting.pop(channel, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        if verb is not None and self._pushes is not None:
            self._pushes.send("PUNSUBSCRIBE" if verb == "PSUBSCRIBE" else "UNSUBSCRIBE", channel)

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
                self._pushes = None
                self._confirmed.clear()
                await connection.disconnect(nowait=True)
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(LONGEST_BACKOFF_S, 0.1 * 2**failures))

    async def _serve(self, connection: AbstractConnection) -> None:
        """Until the connection breaks; raises what broke it."""
        pushes = self._pushes = RedisPushes(connection, self._hear)
        for verb in ("SUBSCRIBE", "PSUBSCRIBE"):
            channels = [channel for channel, wanted in self._wanted.items() if wanted == verb]
            if channels:
                pushes.send(verb, *channels)
        halves = {asyncio.create_task(pushes.lost()), asyncio.create_task(self._keep_alive(pushes))}
        try:
            done, _ = await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tasks.end(halves)
        for half in done:
            half.result()

    async def _keep_alive(self, pushes: RedisPushes) -> None:
        """A frozen Redis keeps its connections open; only silence tells."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._limits.feed_ping_s)
            if loop.time() - pushes.heard_at > self._limits.feed_silence_s:
                raise RedisConnectionError(f"no answer for {self._limits.feed_silence_s:g} s")
            pushes.send("PING")

    def _hear(self, answers: list[Any]) -> None:
        """What came in one read, messages by channel; whatever else comes is handled after the messages before it."""
        messages: dict[bytes, list[bytes]] = {}
        try:
            for answer in answers:
                kind = answer[0] if type(answer) is list else None
                if kind == b"message":
                    _, channel, data = answer
                    if channel in messages:
                        messages[channel].append(data)
                    else:
                        messages[channel] = [data]
                elif kind == b"pmessage":
                    self._on_pattern_message(answer[2], answer[3])
                else:
                    heard, messages = messages, {}
                    self._on_messages(heard)
                    self._handle(answer)
        finally:
            self._on_messages(messages)  # also what came before something that was refused

    def _handle(self, answer: Any) -> None:
        match answer:
            case [b"subscribe" | b"psubscribe", bytes(channel), _]:
                self._confirm(channel)
            case hiredis.ReplyError():
                raise RedisError(f"Redis refuses: {answer}")
            case _:  # pongs, and confirmations of UNSUBSCRIBE
                pass

    def _confirm(self, channel: bytes) -> None:
        waiting = self._waiting.pop(channel, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        if channel in self._wanted:
            self._confirmed.add(channel)
            self._on_subscribed(channel)
