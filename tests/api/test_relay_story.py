"""Property: whatever is lost, trimmed or wiped, a subscriber's messages are the log, or say that they aren't (I3)."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis.asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from api import tasks
from api.history import gapless
from api.peer import Peer
from api.relay import Relay
from epochcast.events import BEFORE_ALL, EventId
from shared.database import Database
from shared.event_log import Entry, log_key
from shared.queries import Queries
from shared.settings import Settings
from shared.store import Store
from tests.api.serving import QUICK
from tests.api.training import Training
from tests.conftest import make_settings

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.integers(1, 4)),
        st.tuples(st.just("unheard"), st.integers(1, 3)),
        st.tuples(st.just("archive"), st.just(0)),
        st.tuples(st.just("trim"), st.integers(0, 3)),
        st.tuples(st.just("wipe"), st.just(0)),
        st.tuples(st.just("requeue"), st.just(0)),
        st.tuples(st.just("reconnect"), st.booleans()),
    ),
    max_size=12,
)


@settings(
    max_examples=25,
    # Shrinking would take minutes, and the failing steps are short anyway.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS)
def test_the_story_of_a_subscriber_is_the_log(
    steps: list[tuple[str, int]], redis_url: str, migrated_sqlite: Path
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(migrated_sqlite, Path(folder) / "epochcast.db")
        platform = make_settings(f"sqlite:///{folder}/epochcast.db", redis_url, Path(folder))
        asyncio.run(_play(platform, steps))


async def _play(platform: Settings, steps: list[tuple[str, int]]) -> None:
    database = Database(platform.database_url.get_secret_value())
    training = await asyncio.to_thread(Training, database, platform.events_redis_url)
    training.client.flushall()
    await asyncio.to_thread(training.start)
    world = World(training)
    async with _relay(platform, database) as relay:
        reader = Reader(relay, training)
        reader.connect(BEFORE_ALL)
        for step, argument in steps:
            if step == "reconnect":
                await reader.disconnect()
                reader.connect(reader.last if argument else None)
            else:
                await asyncio.to_thread(getattr(world, step), argument)
        await asyncio.to_thread(world.finish)
        await asyncio.wait_for(reader.task, 60)
    reader.check(world.written)
    training.close()
    database.close()


class World:
    """What may happen to a job's log."""

    def __init__(self, training: Training) -> None:
        self._training = training
        claimed = training.claimed
        assert claimed is not None
        self.written = [entry.id for entry in claimed.unannounced]

    def report(self, count: int) -> None:
        self.written += [entry.id for entry in self._training.report(count)]

    def unheard(self, count: int) -> None:
        """In the stream, but the published messages got lost."""
        for entry in self._training.report(count, ship=False):
            self._training.append(entry, announce=False)
            self.written.append(entry.id)

    def archive(self, _: int) -> None:
        self._training.archive()

    def trim(self, kept: int) -> None:
        self._training.client.xtrim(log_key(self._training.job_id), maxlen=kept + 1, approximate=False)

    def wipe(self, _: int) -> None:
        """Redis comes back empty; the worker ships its generation again."""
        self._training.client.flushall()
        self._training.ship_again()

    def requeue(self, _: int) -> None:
        """The attempt is lost; the announcer and the next attempt go on."""
        self._training.record.requeue("lost", "test")
        self._training.announce()
        self.written.append(self._training.last)
        self._training.start()
        self.written.append(self._training.last)

    def finish(self) -> None:
        self.written.append(self._training.finish().id)


class Reader:
    """A client that keeps its cursor."""

    def __init__(self, relay: Relay, training: Training) -> None:
        self._relay = relay
        self._training = training
        self.told: list[tuple[EventId, bool]] = []
        """Ids in the order of their messages, and whether the message may follow a hole."""
        self.last: EventId = BEFORE_ALL
        self.task: asyncio.Task[Any]

    def connect(self, after: EventId | None) -> None:
        self._is_fresh = after is None
        peer = Peer(self._take, float("inf"), self._relay.limits)
        self.task = asyncio.create_task(self._relay.follow(peer, self._training.job, after))

    async def disconnect(self) -> None:
        await tasks.end([self.task])

    async def _take(self, _identifier: EventId, text: str) -> None:
        message = json.loads(text)
        self.last = EventId.parse(message["id"])
        self.told.append((self.last, self._is_fresh or message.get("resync", False)))
        self._is_fresh = False

    def check(self, written: list[EventId]) -> None:
        position = -1
        for identifier, may_jump in self.told:
            if may_jump:
                # A state stands for everything up to its id.
                position = max(index for index, known in enumerate(written) if known <= identifier)
                continue
            assert identifier in written, f"{identifier} was never written"
            expected = written[position + 1]
            assert identifier == expected, f"{identifier} came where {expected} was next: {self.told} of {written}"
            position += 1
        assert position == len(written) - 1, f"the story ends at {self.told[-1:]}, the log at {written[-1]}"


@asynccontextmanager
async def _relay(platform: Settings, database: Database) -> AsyncIterator[Relay]:
    client = redis.asyncio.Redis.from_url(platform.events_redis_url, socket_timeout=1, retry=Retry(NoBackoff(), 0))
    limits = replace(QUICK, reconcile_s=0.2)
    relay = Relay(platform, Store(database), Queries(database), client, limits)
    relay.start()
    try:
        yield relay
    finally:
        await relay.stop()
        await client.aclose()


IDS = st.tuples(st.integers(1, 3), st.integers(1, 6)).map(lambda pair: EventId(*pair))


@given(cursor=IDS, log=st.lists(IDS, unique=True), lost=st.sets(st.integers(0, 20)))
def test_a_hole_is_seen_exactly_where_an_event_is_missing(cursor: EventId, log: list[EventId], lost: set[int]) -> None:
    whole = sorted(log)
    entries = [
        Entry(identifier, before, "progress", "running", "alice", b"{}")
        for before, identifier in zip([BEFORE_ALL, *whole], whole, strict=False)
    ]
    left = [entry for index, entry in enumerate(entries) if index not in lost and entry.id > cursor]
    missing = [entry.id for index, entry in enumerate(entries) if index in lost and entry.id > cursor]
    ready = len(gapless(cursor, left))
    hole = ready if ready < len(left) else None
    if hole is None:
        assert not [identifier for identifier in missing if left and identifier < left[-1].id]
    else:
        assert [identifier for identifier in missing if identifier < left[hole].id]
        before = left[hole - 1].id if hole else cursor
        assert [identifier for identifier in missing if before < identifier < left[hole].id]
