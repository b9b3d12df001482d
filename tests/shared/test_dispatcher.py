"""The dispatcher with a real broker: pokes reach the host's queue, events reach the log, outages end nothing."""

from collections.abc import Iterator

import pytest
import redis
import sqlalchemy as sa

from epochcast.events import decode
from shared.celery_app import Poker, queue_of
from shared.database import Database
from shared.dispatcher import UNCLAIMED_S, Dispatcher
from shared.embedded import RedisServer
from shared.event_log import EventLog, entry_of_row, log_key, snapshot_key
from shared.membership import Standing, standing
from shared.settings import Settings
from shared.store import Store
from shared.tables import avoided_hosts, placements
from tests.shared.gangs import create_gang, join
from tests.shared.records import add_host, claim_placed, expire_lease, host_state, spec
from tests.waiting import wait_until


class Dispatching:
    def __init__(self, settings: Settings) -> None:
        self.database = Database(settings.database_url.get_secret_value())
        self.store = Store(self.database)
        self.redis = redis.Redis.from_url(settings.events_redis_url, socket_timeout=1, socket_connect_timeout=1)
        self.dispatcher = Dispatcher(
            settings, self.database, EventLog(self.redis), Poker(settings.broker_url.get_secret_value())
        )
        add_host(self.database, host_state(slots=10))

    def pokes(self, host: str = "host-1") -> int:
        """How many hints wait in a host's queue."""
        return int(self.redis.llen(f"ec:{queue_of(host)}"))

    def log(self, job_id: int) -> list[str]:
        rows = self.redis.xrange(log_key(job_id))
        return [str(entry_of_row(row).id) for row in rows]  # type: ignore[union-attr]


@pytest.fixture
def dispatching(settings: Settings) -> Iterator[Dispatching]:
    made = Dispatching(settings)
    yield made
    made.dispatcher.stop()
    made.redis.close()
    made.database.close()


def test_a_new_job_is_placed_poked_and_announced_in_one_pass(dispatching: Dispatching) -> None:
    job, _ = dispatching.store.create(spec(), "alice")
    dispatching.dispatcher.run_once()
    assert dispatching.pokes() == 1
    assert dispatching.log(job.job_id) == ["1-1"]
    snapshot = dispatching.redis.get(snapshot_key(job.job_id))
    assert isinstance(snapshot, bytes)
    assert b'"status":"queued"' in snapshot
    assert dispatching.store.unannounced() == []
    dispatching.dispatcher.run_once()
    assert dispatching.pokes() == 1, "the next poke is due in 5 s"


def test_an_unclaimed_job_is_poked_again_when_the_time_has_come(dispatching: Dispatching) -> None:
    dispatching.store.create(spec(), "alice")
    dispatching.dispatcher.run_once()
    with dispatching.database.write() as connection:
        connection.execute(sa.update(placements).values(next_poke_at=1.0))
    dispatching.dispatcher.run_once()
    assert dispatching.pokes() == 2


def test_a_lost_job_is_taken_back_placed_again_and_said(dispatching: Dispatching) -> None:
    job, _ = dispatching.store.create(spec(), "alice")
    dispatching.dispatcher.run_once()
    claim_placed(dispatching.database, job.job_id)
    expire_lease(dispatching.database, job.job_id)
    dispatching.dispatcher.run_once()
    assert dispatching.log(job.job_id) == ["1-1", "2-1", "3-1"]
    row = dispatching.redis.xrevrange(log_key(job.job_id), count=1)[0]  # type: ignore[index]
    event = decode(entry_of_row(row).payload)
    assert (event.type, event.status, event.id) == ("progress", "queued", "3-1")


def test_a_frozen_redis_stops_no_placement_and_costs_the_host_no_blame(
    dispatching: Dispatching, redis_server: RedisServer
) -> None:
    job, _ = dispatching.store.create(spec(), "alice")
    redis_server.pause()
    dispatching.dispatcher.run_once()
    redis_server.resume()
    with dispatching.database.read() as connection:
        placed = connection.execute(sa.select(placements)).one()
    assert placed.pokes == 0, "a poke that could not be sent is due again"
    dispatching.dispatcher.start()
    wait_until(lambda: dispatching.log(job.job_id) == ["1-1"], "the announcement", timeout_s=20)
    wait_until(lambda: dispatching.pokes() >= 1, "the poke", timeout_s=20)


def test_a_broker_that_is_away_is_no_hosts_fault_however_many_jobs_wait(
    dispatching: Dispatching, redis_server: RedisServer
) -> None:
    for _ in range(5):
        dispatching.store.create(spec(), "alice")
    dispatching.dispatcher.run_once()
    with dispatching.database.write() as connection:
        connection.execute(sa.update(placements).values(placed_at=placements.c.placed_at - 100, next_poke_at=1.0))
        long_ago = connection.execute(sa.select(sa.func.max(placements.c.placed_at))).scalar_one()
    redis_server.pause()
    dispatching.dispatcher.run_once()
    redis_server.resume()
    with dispatching.database.read() as connection:
        placed_at = connection.execute(sa.select(placements.c.placed_at)).scalars().all()
    assert len(placed_at) == 5
    assert min(placed_at) > long_ago, "the time without a broker counts for none of them"


def test_a_stop_asked_of_a_job_that_was_then_lost_is_carried_out(dispatching: Dispatching) -> None:
    job, _ = dispatching.store.create(spec(), "alice")
    dispatching.dispatcher.run_once()
    claim_placed(dispatching.database, job.job_id)
    dispatching.store.request_stop(job.job_id)
    expire_lease(dispatching.database, job.job_id)
    dispatching.dispatcher.run_once()
    assert dispatching.store.get(job.job_id).status == "stopped"
    assert dispatching.log(job.job_id)[-1] == "3-1"


def test_every_host_of_a_job_is_poked_until_it_has_claimed_its_place(dispatching: Dispatching) -> None:
    database = dispatching.database
    add_host(database, host_state("host-2", slots=10))
    job_id = create_gang(dispatching.store)
    dispatching.dispatcher.run_once()
    assert {host: dispatching.pokes(host) for host in ("host-1", "host-2")} == {"host-1": 1, "host-2": 1}
    join(database, job_id, "host-1")
    with database.write() as connection:
        connection.execute(sa.update(placements).values(next_poke_at=1.0))
    dispatching.dispatcher.run_once()
    assert {host: dispatching.pokes(host) for host in ("host-1", "host-2")} == {"host-1": 1, "host-2": 2}


def test_after_120_s_without_one_host_all_are_released_and_only_that_one_is_avoided(dispatching: Dispatching) -> None:
    database = dispatching.database
    add_host(database, host_state("host-2", slots=10))
    job_id = create_gang(dispatching.store)
    dispatching.dispatcher.run_once()
    waiting = join(database, job_id, "host-1")
    with database.write() as connection:
        connection.execute(sa.update(placements).values(placed_at=database.now - UNCLAIMED_S - 1))
    dispatching.dispatcher.run_once()
    assert standing(database, waiting) is Standing.RELEASED
    with database.read() as connection:
        assert connection.execute(sa.select(avoided_hosts.c.host)).scalars().all() == ["host-2"]
    assert dispatching.store.get(job_id).attempt == 0
