"""Places on several hosts: claimed alone, started together, released together, on SQLite and PostgreSQL."""

import pytest
import sqlalchemy as sa

from epochcast.jobs import Status
from shared.attempt import LeaseLost
from shared.claims import claim
from shared.database import Database
from shared.membership import Standing, claim_member, hold_place, standing, started_member
from shared.placement import place
from shared.recovery import Recovery
from shared.store import Store
from shared.tables import avoided_hosts, members, placements
from tests.shared.gangs import (
    IDENTITY,
    MASTER,
    add_hosts,
    create_gang,
    expire_member,
    join,
    join_all,
    placed_hosts,
    record_of_member,
    start,
    with_token,
)


@pytest.fixture
def database(database: Database) -> Database:
    add_hosts(database, 3)
    return database


def member_rows(database: Database, job_id: int) -> list[tuple[int, int, int | None]]:
    """Generation, member, attempt."""
    with database.read() as connection:
        query = sa.select(members.c.generation, members.c.member, members.c.attempt).where(members.c.job_id == job_id)
        return [tuple(row) for row in connection.execute(query.order_by(members.c.member))]


def test_members_start_together_when_the_last_is_there(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    place(database)
    hosts = placed_hosts(database, job_id)
    zero = join(database, job_id, hosts[0])
    assert standing(database, zero) is Standing.WAITING
    assert claim(database, job_id, hosts[0], 120, 1, IDENTITY, zero, MASTER) is None, "not all are there"
    one = join(database, job_id, hosts[1])
    assert (standing(database, zero), standing(database, one)) == (Standing.READY, Standing.WAITING)
    assert started_member(database, one) is None
    claimed = claim(database, job_id, hosts[0], 120, 1, IDENTITY, zero, MASTER)
    assert claimed is not None
    assert claimed.job.generation == 2
    assert standing(database, one) is Standing.STARTED
    assert member_rows(database, job_id) == [(2, 0, 1), (2, 1, 1)], "raised with the job's own generation"
    started = started_member(database, one)
    assert started is not None
    assert (started.job.generation, started.master, started.unannounced) == (2, MASTER, ())
    assert {host.name for host in claimed.job.hosts} == set(hosts)


def test_a_job_on_several_hosts_is_never_claimed_by_one_alone(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    place(database)
    assert claim(database, job_id, placed_hosts(database, job_id)[0], 120, 1, IDENTITY) is None
    assert store.get(job_id).status is Status.QUEUED


def test_a_job_on_one_host_has_no_members(database: Database, store: Store) -> None:
    job_id = create_gang(store, nodes=1)
    place(database)
    [host] = placed_hosts(database, job_id)
    assert claim_member(database, job_id, host, 120, IDENTITY, "127.0.0.1") is None
    assert claim(database, job_id, host, 120, 1, IDENTITY) is not None
    assert member_rows(database, job_id) == []


def test_a_doubled_message_claims_no_place_twice(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    zero, _ = join_all(database, job_id)
    assert claim_member(database, job_id, zero.host, 120, IDENTITY, "127.0.0.1") is None


def test_a_place_whose_supervisor_died_is_claimed_anew_and_the_old_one_is_fenced(
    database: Database, store: Store
) -> None:
    job_id = create_gang(store)
    zero, one = join_all(database, job_id)
    expire_member(database, job_id, one.member)
    assert standing(database, zero) is Standing.WAITING
    again = join(database, job_id, one.host)
    assert not hold_place(database, one, 120)
    assert standing(database, one) is Standing.RELEASED
    assert hold_place(database, again, 120)
    assert standing(database, zero) is Standing.READY
    assert claim(database, job_id, zero.host, 120, 1, IDENTITY, with_token(zero, "x" * 32), MASTER) is None


def test_a_member_that_never_starts_releases_all_and_only_its_host_is_avoided(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    place(database)
    present, absent = placed_hosts(database, job_id)
    waiting = join(database, job_id, present)
    recovery = Recovery(database)
    assert not recovery.release_placement(job_id, 1, present, 600), "it has claimed its place"
    assert recovery.release_placement(job_id, 1, absent, 600)
    assert (placed_hosts(database, job_id), member_rows(database, job_id)) == ([], [])
    assert standing(database, waiting) is Standing.RELEASED
    with database.read() as connection:
        assert connection.execute(sa.select(avoided_hosts.c.host)).scalars().all() == [absent]
    place(database)
    assert absent not in placed_hosts(database, job_id)
    job = store.get(job_id)
    assert (job.status, job.generation, job.attempt) == (Status.QUEUED, 1, 0), "nothing of it is charged"


def test_a_stop_releases_whoever_waits(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    zero, one = join_all(database, job_id)
    assert store.request_stop(job_id).status is Status.STOPPED
    assert {standing(database, one), standing(database, zero)} == {Standing.RELEASED}
    assert claim(database, job_id, zero.host, 120, 1, IDENTITY, zero, MASTER) is None
    assert (placed_hosts(database, job_id), member_rows(database, job_id)) == ([], [])


def test_a_host_that_leaves_releases_the_others_too(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    zero, one = join_all(database, job_id)
    assert Recovery(database).release_host(one.host) == [job_id]
    assert standing(database, zero) is Standing.RELEASED
    with database.read() as connection:
        assert connection.execute(sa.select(placements.c.job_id)).all() == []


def test_a_member_beyond_0_claims_nothing_even_when_all_are_ready(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    zero, one = join_all(database, job_id)
    assert claim(database, job_id, one.host, 120, 1, IDENTITY, one, MASTER) is None
    assert claim(database, job_id, zero.host, 120, 1, IDENTITY, zero, MASTER) is not None


def test_a_member_resumes_from_what_was_committed_before_its_attempt(database: Database, store: Store) -> None:
    from shared.attempt import StoredFile
    from tests.shared.records import record_of

    job_id = create_gang(store)
    claimed, [record] = start(database, job_id)
    file = StoredFile("checkpoint", "jobs/1/a.pt", 3, "0" * 64, epoch=4)
    record_of(database, claimed).commit_checkpoint(file)
    record.end("drained", None, 0)
    record_of(database, claimed).requeue("drained", "the worker was shut down")
    zero, one = join_all(database, job_id)
    again = claim(database, job_id, zero.host, 120, 1, IDENTITY, zero, MASTER)
    assert again is not None
    record_of(database, again).commit_checkpoint(StoredFile("checkpoint", "jobs/1/b.pt", 3, "0" * 64, epoch=5))
    started = started_member(database, one)
    assert started is not None
    assert [one.epoch for one in started.checkpoints] == [one.epoch for one in again.checkpoints] == [4]


def test_a_member_of_an_attempt_that_is_over_writes_nothing(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    zero, one = join_all(database, job_id)
    claim(database, job_id, zero.host, 120, 1, IDENTITY, zero, MASTER)
    record = record_of_member(database, one)
    expire_member(database, job_id, 1)
    assert Recovery(database).lose(job_id, "gone", only_expired=False, generation=2)
    assert started_member(database, one) is None
    with pytest.raises(LeaseLost):
        record.heartbeat(120)
    with pytest.raises(LeaseLost):
        record.tell(1, b"[]")
    with pytest.raises(LeaseLost):
        record.end("succeeded", None, 0)
