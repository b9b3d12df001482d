"""Two writers and one job at the same moment, on PostgreSQL (SQLite lets one transaction write at a time)."""

import threading
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from epochcast.jobs import Status
from shared.attempt import LeaseLost
from shared.claims import Claim, claim
from shared.database import Database
from shared.gang import end_members
from shared.membership import Standing, standing
from shared.placement import Placed, place
from shared.recovery import Recovery
from shared.store import Store
from shared.tables import gpus, jobs, members, placements, transition_events
from shared.transitions import release_resources, stop_queued
from tests.shared.gangs import MASTER, add_hosts, create_gang, expire_member, join_all, start
from tests.shared.records import IDENTITY, add_host, claim_placed, expire_lease, host_state, spec
from tests.waiting import wait_until

pytestmark = pytest.mark.postgres


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    opened = Database(postgres_url)
    add_host(opened, host_state(gpus=1))
    yield opened
    opened.close()


class Meanwhile:
    """Runs `act` in a thread while the test's own transaction is open."""

    def __init__(self, database: Database, act: Callable[[], object]) -> None:
        self._database = database
        self._thread = threading.Thread(target=act)
        self._thread.start()
        wait_until(lambda: self._waits() or not self._thread.is_alive(), "the other transaction")

    def _waits(self) -> bool:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        with self._database.read() as connection:
            return bool(connection.exec_driver_sql(waiting).scalar_one())

    def join(self) -> None:
        self._thread.join()


def placed_jobs(database: Database) -> list[int]:
    with database.read() as connection:
        return list(connection.execute(sa.select(placements.c.job_id).order_by(placements.c.job_id)).scalars())


def gpu_holders(database: Database) -> list[int | None]:
    with database.read() as connection:
        return list(connection.execute(sa.select(gpus.c.job_id)).scalars())


def test_a_job_stopped_while_it_is_placed_holds_nothing_and_the_next_gets_its_gpu(
    database: Database, store: Store
) -> None:
    stopped, after = [store.create(spec(gpus=1), "alice")[0].job_id for _ in range(2)]
    placed: list[Placed] = []
    with database.write() as connection:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == stopped)).one()
        assert stop_queued(connection, row, 1.0)
        placing = Meanwhile(database, lambda: placed.extend(place(database)))
    placing.join()
    assert store.get(stopped).status is Status.STOPPED
    assert placed == [Placed(after, "host-1")]
    assert (placed_jobs(database), gpu_holders(database)) == ([after], [after])


def test_a_claim_that_waited_for_the_release_of_its_placement_gets_nothing(database: Database, store: Store) -> None:
    job_id = store.create(spec(gpus=1), "alice")[0].job_id
    place(database)
    claims: list[Claim | None] = []
    with database.write() as connection:
        connection.execute(sa.select(jobs.c.id).where(jobs.c.id == job_id).with_for_update())
        release_resources(connection, job_id)
        claiming = Meanwhile(database, lambda: claims.append(claim(database, job_id, "host-1", 120, 1, IDENTITY)))
    claiming.join()
    assert claims == [None]
    assert store.get(job_id).status is Status.QUEUED


def test_a_host_that_leaves_lets_a_job_keep_what_it_just_claimed(database: Database, store: Store) -> None:
    job_id = store.create(spec(gpus=1), "alice")[0].job_id
    place(database)
    released: list[int] = []
    with database.write() as connection:
        claimed = {"status": Status.RUNNING, "generation": 2, "lease_until": 2.0**40}
        connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**claimed))
        leaving = Meanwhile(database, lambda: released.extend(Recovery(database).release_host("host-1")))
    leaving.join()
    assert released == []
    assert (placed_jobs(database), gpu_holders(database)) == ([job_id], [job_id])


def test_a_stop_that_is_asked_while_the_job_is_taken_back_counts(database: Database, store: Store) -> None:
    job_id = store.create(spec(), "alice")[0].job_id
    claim_placed(database, job_id)
    expire_lease(database, job_id)
    with database.write() as connection:
        newest = {"stop_requested": True, "last_generation": 2, "last_seq": 9}
        connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**newest))
        reaping = Meanwhile(database, Recovery(database).reap)
    reaping.join()
    assert store.get(job_id).status is Status.STOPPED
    with database.read() as connection:
        prev = sa.select(transition_events.c.prev).where(transition_events.c.generation == 3)
        assert connection.execute(prev).scalar_one() == "2-9"


def test_each_transition_names_the_newest_event_even_when_it_waited(database: Database, store: Store) -> None:
    job_id = store.create(spec(), "alice")[0].job_id
    place(database)
    with database.write() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(last_seq=9))
        stopping = Meanwhile(database, lambda: store.request_stop(job_id))
    stopping.join()
    with database.read() as connection:
        prev = sa.select(transition_events.c.prev).where(transition_events.c.generation == 2)
        assert connection.execute(prev).scalar_one() == "1-9"


def test_a_renewal_that_waited_for_the_end_of_its_attempt_finds_it_over(database: Database, store: Store) -> None:
    add_hosts(database, 2)
    job_id = create_gang(store)
    _, [record] = start(database, job_id)
    expire_lease(database, job_id)
    expire_member(database, job_id, 1)
    lost: list[LeaseLost] = []

    def renew() -> None:
        try:
            record.heartbeat(120)
        except LeaseLost as error:
            lost.append(error)

    with database.write() as connection:
        now = database.time(connection)
        row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update()).one()
        end_members(connection, job_id, row.generation, now, "lost")
        renewing = Meanwhile(database, renew)
    renewing.join()
    assert len(lost) == 1


def test_a_renewal_that_comes_first_keeps_the_job_from_being_taken_back(database: Database, store: Store) -> None:
    add_hosts(database, 2)
    job_id = create_gang(store)
    start(database, job_id)
    expire_lease(database, job_id)
    expire_member(database, job_id, 1)
    taken: list[list[int]] = []
    with database.write() as connection:
        this = sa.and_(members.c.job_id == job_id, members.c.member == 1)
        connection.execute(sa.update(members).where(this).values(lease_until=database.now + 120))
        reaping = Meanwhile(database, lambda: taken.append(Recovery(database).reap()))
    reaping.join()
    assert taken == [[]]
    assert store.get(job_id).status is Status.RUNNING


def test_of_a_claim_and_a_release_at_one_moment_one_wins_whole(database: Database, store: Store) -> None:
    add_hosts(database, 2)
    job_id = create_gang(store)
    zero, one = join_all(database, job_id)
    claims: list[Claim | None] = []
    with database.write() as connection:
        connection.execute(sa.select(jobs.c.id).where(jobs.c.id == job_id).with_for_update())
        release_resources(connection, job_id)
        claiming = Meanwhile(
            database,
            lambda: claims.append(claim(database, job_id, zero.host, 120, 1, IDENTITY, zero, MASTER)),
        )
    claiming.join()
    assert claims == [None]
    assert {standing(database, zero), standing(database, one)} == {Standing.RELEASED}
