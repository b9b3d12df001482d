"""The event log on Redis 6.2 and on the newest: retries, zombies, a lost tail, a wiped server."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import redis.asyncio

from epochcast.events import BEFORE_ALL, EventId
from shared.event_log import (
    Answer,
    Appended,
    Entry,
    EventLog,
    EventReader,
    current_key,
    entry_of_feed,
    feed_channel,
    log_key,
    snapshot_key,
)

JOB = 42


class Writer:
    """Writes events of one job; `log` is what a supervisor holds."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.log = EventLog(client, kept_per_job=1000, kept_s=600)

    def append(self, entry: Entry, *, announce: bool = True) -> Appended:
        mark = str(entry.id).encode()
        return self.log.append(JOB, entry, snapshot=b"s" + mark, current=b"c" + mark, announce=announce)

    @property
    def ids(self) -> list[str]:
        rows: Any = self.client.xrange(log_key(JOB))
        return [identifier.decode() for identifier, _ in rows]

    @contextmanager
    def heard(self) -> Iterator[redis.client.PubSub]:
        """A subscription that is confirmed."""
        with self.client.pubsub() as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(feed_channel(JOB))
            assert subscription.get_message(timeout=5)
            yield subscription


@pytest.fixture
def writer(any_redis_url: str) -> Iterator[Writer]:
    with redis.Redis.from_url(any_redis_url) as client:
        yield Writer(client)


def entry(identifier: str, prev: str, *, kind: str = "progress", status: str = "running", gap: bool = False) -> Entry:
    return Entry(EventId.parse(identifier), EventId.parse(prev), kind, status, "alice", identifier.encode(), gap)


def generation(number: int, count: int, prev: str = "0") -> list[Entry]:
    """`count` events of one generation."""
    before = [prev, *(f"{number}-{seq}" for seq in range(1, count))]
    return [entry(f"{number}-{seq}", before[seq - 1]) for seq in range(1, count + 1)]


def test_a_retry_is_a_duplicate_and_changes_nothing(writer: Writer) -> None:
    first, second = generation(1, 2)
    assert writer.append(first) == Appended(Answer.OK, first.id)
    assert writer.append(second) == Appended(Answer.OK, second.id)
    assert writer.append(second) == Appended(Answer.DUPLICATE, second.id)
    assert writer.append(first) == Appended(Answer.DUPLICATE, second.id)
    assert writer.ids == ["1-1", "1-2"]
    assert writer.client.get(current_key(JOB)) == b"c1-2"


def test_a_zombie_of_an_older_generation_is_refused(writer: Writer) -> None:
    mine = generation(1, 3)
    writer.append(mine[0])
    writer.append(entry("2-1", "1-1", status="queued"))
    assert writer.append(mine[1]) == Appended(Answer.FENCED, EventId(2, 1))
    assert writer.ids == ["1-1", "2-1"]
    assert writer.client.get(snapshot_key(JOB)) == b"s2-1"


def test_a_lost_tail_is_reported_and_shipped_again(writer: Writer) -> None:
    journal = generation(1, 5)
    for event in journal[:2]:
        writer.append(event)
    assert writer.append(journal[4]) == Appended(Answer.BEHIND, EventId(1, 2))
    assert writer.ids == ["1-1", "1-2"]
    for event in journal[2:]:
        assert writer.append(event, announce=event is journal[-1]).answer is Answer.OK
    assert writer.ids == ["1-1", "1-2", "1-3", "1-4", "1-5"]


def test_a_wiped_server_takes_the_generation_again_quietly_but_for_its_last_event(writer: Writer) -> None:
    journal = generation(3, 4, prev="2-9")
    for event in journal:
        writer.append(event)
    writer.client.flushall()
    following = entry("3-5", "3-4")
    assert writer.append(following) == Appended(Answer.BEHIND, BEFORE_ALL)
    with writer.heard() as heard:
        for event in journal:
            assert writer.append(event, announce=False).answer is Answer.OK
        assert writer.client.exists(current_key(JOB), snapshot_key(JOB)) == 0
        assert writer.append(following).answer is Answer.OK
        message = heard.get_message(timeout=5)
    assert message is not None
    assert entry_of_feed(message["data"]) == following
    assert writer.ids == ["3-1", "3-2", "3-3", "3-4", "3-5"]


def test_the_first_event_of_a_generation_is_never_behind(writer: Writer) -> None:
    """What came before it belongs to another writer; readers see its `prev` and fill from SQL."""
    writer.append(entry("1-1", "0"))
    assert writer.append(entry("2-1", "1-7")).answer is Answer.OK
    assert writer.ids == ["1-1", "2-1"]


def test_a_gap_goes_on_where_nobody_can_fill(writer: Writer) -> None:
    writer.append(entry("1-1", "0"))
    skipped = entry("1-9", "1-8", gap=True)
    assert writer.append(skipped).answer is Answer.OK
    assert writer.append(entry("1-10", "1-9")).answer is Answer.OK


@pytest.mark.parametrize(("kind", "status"), [("complete", "succeeded"), ("error", "failed"), ("progress", "stopped")])
def test_an_ended_log_expires_and_a_restart_keeps_it(writer: Writer, kind: str, status: str) -> None:
    keys = (log_key(JOB), snapshot_key(JOB), current_key(JOB))
    writer.append(entry("1-1", "0"))
    assert [writer.client.ttl(key) for key in keys] == [-1, -1, -1]
    writer.append(entry("1-2", "1-1", kind=kind, status=status))
    assert all(0 < int(writer.client.ttl(key)) <= 600 for key in keys)
    writer.append(entry("2-1", "1-2", status="queued"))
    assert [writer.client.ttl(key) for key in keys] == [-1, -1, -1]


def test_a_live_message_and_the_stream_say_the_same(writer: Writer, any_redis_url: str) -> None:
    awkward = Entry(
        EventId(1, 1), BEFORE_ALL, "log", "running", "alice of the\u00e9 lab", b'{"message":"a\\nb c"}\n', True
    )
    with writer.heard() as heard:
        writer.append(awkward)
        message = heard.get_message(timeout=5)
    assert message is not None
    assert entry_of_feed(message["data"]) == awkward
    assert asyncio.run(_read(any_redis_url, BEFORE_ALL)) == [awkward]


@pytest.mark.parametrize(
    ("kind", "status", "gap", "first_line"),
    [
        ("progress", "running", False, b"1-2"),
        ("log", "running", False, b"1-2"),
        ("progress", "running", True, b""),
        ("progress", "stopped", False, b""),
        ("progress", "queued", False, b""),
        ("complete", "succeeded", False, b""),
        ("error", "failed", False, b""),
    ],
)
def test_a_live_message_begins_with_its_id_when_it_only_follows_the_one_before(
    writer: Writer, kind: str, status: str, gap: bool, first_line: bytes
) -> None:
    writer.append(entry("1-1", "0"))
    with writer.heard() as heard:
        writer.append(entry("1-2", "1-1", kind=kind, status=status, gap=gap))
        message = heard.get_message(timeout=5)
    assert message is not None
    assert message["data"].split(b"\n")[0] == first_line


def test_a_live_message_of_a_worker_that_is_not_updated_yet_is_understood() -> None:
    data = b"2-47 2-46 progress running - alice of the lab\n{47}"
    assert entry_of_feed(data) == Entry(
        EventId(2, 47), EventId(2, 46), "progress", "running", "alice of the lab", b"{47}"
    )


def test_a_reader_gets_pages_after_its_cursor(writer: Writer, any_redis_url: str) -> None:
    events = generation(1, 30)
    for event in events:
        writer.append(event)
    assert asyncio.run(_read(any_redis_url, BEFORE_ALL, 10)) == events[:10]
    assert asyncio.run(_read(any_redis_url, EventId(1, 10), 500)) == events[10:]
    assert asyncio.run(_read(any_redis_url, EventId(1, 30))) == []
    assert asyncio.run(_read(any_redis_url, EventId(9, 9))) == []


async def _read(url: str, cursor: EventId, count: int = 500) -> list[Entry]:
    async with redis.asyncio.Redis.from_url(url) as client:
        return await EventReader(client).after(JOB, cursor, count)
