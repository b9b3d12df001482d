"""Stored events reach Redis in order, with what Redis lost before them, and one job's trouble is its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from epochcast.events import EventId, encode
from epochcast.jobs import JobError, Status, TrainingJob
from shared.announcer import Announcer
from shared.archive import Chunk
from shared.database import Database
from shared.embedded import RedisServer
from shared.event_log import Appended, Entry, EventLog, entry_of_feed, entry_of_row, feed_channel, log_key
from shared.rows import progress_message
from shared.store import Store
from shared.tables import event_chunks
from shared.transitions import error_message
from tests.shared.records import add_host, claim_placed, expire_lease, host_state, record_of, spec


class CountingLog(EventLog):
    """The event log, with a count of the tries."""

    tries = 0

    def append(self, job_id: int, entry: Entry, *, snapshot: bytes, current: bytes, announce: bool = True) -> Appended:
        self.tries += 1
        return super().append(job_id, entry, snapshot=snapshot, current=current, announce=announce)


@dataclass
class Announcing:
    database: Database
    store: Store
    redis: redis.Redis
    log: CountingLog
    announcer: Announcer

    def create(self) -> int:
        return self.store.create(spec(), "alice")[0].job_id

    def entries(self, job_id: int) -> list[Entry]:
        rows: Any = self.redis.xrange(log_key(job_id))
        return [entry_of_row(row) for row in rows]

    def ids(self, job_id: int) -> list[str]:
        return [str(entry.id) for entry in self.entries(job_id)]


@pytest.fixture
def announcing(database_url: str, redis_url: str) -> Iterator[Announcing]:
    database = Database(database_url)
    client = redis.Redis.from_url(redis_url, socket_timeout=1, socket_connect_timeout=1)
    add_host(database, host_state(slots=50))
    log = CountingLog(client)
    yield Announcing(database, Store(database), client, log, Announcer(database, log))
    client.close()
    database.close()


def failed_at(announcing: Announcing, job_id: int, last_seq: int) -> TrainingJob:
    """A job that ran, archived its events up to `last_seq` - 1 and failed with that one; then its host vanished."""
    claimed = claim_placed(announcing.database, job_id)
    record = record_of(announcing.database, claimed)
    lines = [encode(progress_message(claimed.job, EventId(2, seq))) for seq in range(2, last_seq)]
    for start in range(0, len(lines), 2):
        part = lines[start : start + 2]
        record.record(None, [], Chunk(start + 2, start + 1 + len(part), b"\n".join(part)))
    job, _entry = record.finish(
        Status.FAILED,
        seq=last_seq,
        prev=EventId(2, last_seq - 1),
        make_event=error_message,
        lease_s=60,
        outcome="failed",
        error=JobError(type="user_error", message="no"),
    )
    expire_lease(announcing.database, job_id)
    return job


def test_events_that_redis_lacks_are_shipped_from_sql_before_the_terminal_one(announcing: Announcing) -> None:
    job_id = announcing.create()
    failed_at(announcing, job_id, 6)
    with announcing.redis.pubsub() as feed:  # type: ignore[no-untyped-call]
        feed.subscribe(feed_channel(job_id))
        assert feed.get_message(timeout=5)
        announcing.announcer.run()
        heard = [entry_of_feed(message["data"]).id for message in iter(lambda: feed.get_message(timeout=0.2), None)]
    assert announcing.ids(job_id) == ["1-1", "2-1", "2-2", "2-3", "2-4", "2-5", "2-6"]
    assert [entry.gap for entry in announcing.entries(job_id)] == [False] * 7
    assert heard == [EventId(1, 1), EventId(2, 1), EventId(2, 6)], "what is shipped again is history, not news"
    assert announcing.store.unannounced() == []


def test_after_a_wiped_redis_the_generation_is_shipped_from_its_beginning(announcing: Announcing) -> None:
    job_id = announcing.create()
    claim_events = announcing.store.unannounced()
    failed_at(announcing, job_id, 4)
    for waiting in announcing.store.unannounced():
        if waiting.entry.id < EventId(2, 4):
            announcing.store.mark_announced(job_id, waiting.entry.id)
    assert claim_events
    announcing.announcer.run()
    assert announcing.ids(job_id) == ["2-1", "2-2", "2-3", "2-4"]


def test_what_sql_has_lost_too_is_a_gap(announcing: Announcing) -> None:
    job_id = announcing.create()
    failed_at(announcing, job_id, 8)
    with announcing.database.write() as connection:
        connection.execute(sa.delete(event_chunks).where(event_chunks.c.first_seq.in_([2, 6])))
    announcing.announcer.run()
    gaps = {str(entry.id): entry.gap for entry in announcing.entries(job_id)}
    assert gaps == {"1-1": False, "2-1": False, "2-4": True, "2-5": False, "2-8": True}
    assert announcing.store.unannounced() == []


def test_a_long_history_is_shipped_over_several_passes_in_order(announcing: Announcing) -> None:
    job_id = announcing.create()
    failed_at(announcing, job_id, 10)
    Announcer(announcing.database, announcing.log, reshipped_at_once=3).run()
    assert announcing.ids(job_id) == ["1-1", "2-1", "2-2", "2-3", "2-4"]
    announcing.store.restart(job_id)
    announcer = Announcer(announcing.database, announcing.log, reshipped_at_once=3)
    announcer.run()
    assert announcing.ids(job_id)[-1] == "2-7", "the next generation waits: it would fence what comes before it"
    announcer.run()
    assert announcing.ids(job_id)[-2:] == ["2-10", "3-1"]
    assert announcing.store.unannounced() == []


def test_one_job_whose_log_is_refused_holds_no_other_back(announcing: Announcing) -> None:
    refused, fine = announcing.create(), announcing.create()
    announcing.redis.set(log_key(refused), "not a stream")
    announcing.announcer.run()
    assert announcing.ids(fine) == ["1-1"]
    assert [waiting.job_id for waiting in announcing.store.unannounced()] == [refused]
    announcing.redis.delete(log_key(refused))


def test_a_frozen_redis_is_tried_once_a_pass(announcing: Announcing, redis_server: RedisServer) -> None:
    for _ in range(3):
        announcing.create()
    redis_server.pause()
    try:
        with pytest.raises(redis.RedisError):
            announcing.announcer.run()
    finally:
        redis_server.resume()
    assert announcing.log.tries == 1


def test_more_jobs_than_a_page_are_announced_in_one_pass(announcing: Announcing) -> None:
    created = [announcing.create() for _ in range(7)]
    Announcer(announcing.database, announcing.log, page=3).run()
    assert [announcing.ids(job_id) for job_id in created] == [["1-1"]] * 7
