"""An attempt on several hosts ends only after all of them; what members say arrives once; on SQLite and PostgreSQL."""

import pytest
import sqlalchemy as sa

from epochcast.jobs import JobError, Status
from shared.attempt import LeaseLost
from shared.database import Database
from shared.gang import MembersAlive
from shared.gang_record import GangRecord
from shared.member_record import UNTAKEN
from shared.recovery import Recovery
from shared.store import Store
from shared.tables import gpus, member_messages, members
from tests.shared.gangs import add_hosts, create_gang, expire_member, placed_hosts, start
from tests.shared.records import add_host, expire_lease, host_state, record_of


@pytest.fixture
def database(database: Database) -> Database:
    add_hosts(database, 2)
    return database


def outcomes(database: Database, job_id: int) -> list[str | None]:
    with database.read() as connection:
        query = sa.select(members.c.outcome).where(members.c.job_id == job_id)
        return list(connection.execute(query.order_by(members.c.generation, members.c.member)).scalars())


def test_a_requeue_waits_until_every_member_has_ended(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    claimed, [record] = start(database, job_id)
    zero = record_of(database, claimed)
    with pytest.raises(MembersAlive):
        zero.requeue("drained", "the worker was shut down")
    assert store.get(job_id).status is Status.RUNNING
    assert len(placed_hosts(database, job_id)) == 2
    record.end("drained", None, 0)
    zero.requeue("drained", "the worker was shut down")
    assert store.get(job_id).status is Status.QUEUED
    assert placed_hosts(database, job_id) == []
    assert outcomes(database, job_id) == ["drained", "drained"]


def test_a_member_whose_lease_ran_out_counts_as_lost(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    claimed, _ = start(database, job_id)
    expire_member(database, job_id, 1)
    record_of(database, claimed).requeue("platform", "its host was lost")
    assert outcomes(database, job_id) == ["platform", "lost"]


def test_a_lost_member_0_is_taken_back_only_after_the_others_have_ended(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    _, [record] = start(database, job_id)
    expire_lease(database, job_id)
    recovery = Recovery(database)
    assert recovery.reap() == []
    assert store.get(job_id).status is Status.RUNNING
    with pytest.raises(LeaseLost):
        record.heartbeat(120)
    record.end("lost", "the job's lease ran out", None)
    assert recovery.reap() == [job_id]
    assert store.get(job_id).status is Status.QUEUED


def test_a_member_frozen_past_its_lease_holds_the_job_no_longer_and_is_fenced(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    _, [record] = start(database, job_id)
    expire_lease(database, job_id)
    expire_member(database, job_id, 1)
    assert Recovery(database).reap() == [job_id]
    with pytest.raises(LeaseLost):
        record.heartbeat(120)


def test_a_lease_that_has_run_out_is_not_renewed_but_its_member_still_says_that_it_has_ended(
    database: Database, store: Store
) -> None:
    job_id = create_gang(store)
    claimed, [record] = start(database, job_id)
    expire_member(database, job_id, 1)
    with pytest.raises(LeaseLost):
        record.heartbeat(120)
    record.end("lost", None, None)
    record_of(database, claimed).requeue("platform", "its host was lost")
    assert outcomes(database, job_id) == ["platform", "lost"]


def test_a_lease_that_was_renewed_at_the_last_moment_is_not_taken_back(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    _, [record] = start(database, job_id)
    assert not Recovery(database).lose(job_id, "lease ran out", only_expired=True)
    assert record.heartbeat(120).ordered is None, "nobody was told to end"


def test_a_job_let_go_by_its_first_host_ends_on_the_others_and_is_then_taken_back(
    database: Database, store: Store
) -> None:
    job_id = create_gang(store)
    _, [record] = start(database, job_id)
    recovery = Recovery(database)
    assert not recovery.lose(job_id, "disk full", only_expired=False, generation=2)
    assert store.get(job_id).status is Status.RUNNING
    with pytest.raises(LeaseLost):
        record.heartbeat(120)
    record.end("killed", None, None)
    assert recovery.reap() == [job_id]


def test_orders_reach_a_member_and_the_stricter_one_stays(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    claimed, [record] = start(database, job_id)
    gang = GangRecord(database, job_id, claimed.job.generation)
    assert record.heartbeat(120).ordered is None
    assert gang.order("drain") == 1
    assert record.heartbeat(120).ordered == "drain"
    gang.order("kill")
    assert gang.order("drain") == 0
    assert record.heartbeat(120).ordered == "kill"


def test_a_stop_reaches_every_member(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    _, [record] = start(database, job_id)
    store.request_stop(job_id)
    assert record.heartbeat(120).stop_requested


def test_what_a_member_says_arrives_once_and_in_order(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    claimed, [record] = start(database, job_id)
    gang = GangRecord(database, job_id, claimed.job.generation)
    assert record.tell(1, b"one")
    assert record.tell(1, b"one"), "sent again after an outage"
    assert record.tell(2, b"two")
    _, said = gang.look({})
    assert [(one.member, one.seq, one.payload) for one in said] == [(1, 1, b"one"), (1, 2, b"two")]
    assert gang.look({1: 2})[1] == [], "taken, but not deleted yet"
    gang.forget(said)
    assert gang.look({})[1] == []


def test_a_member_waits_when_too_much_of_what_it_said_is_untaken(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    claimed, [record] = start(database, job_id)
    assert all(record.tell(seq, b"x") for seq in range(1, UNTAKEN + 1))
    assert not record.tell(UNTAKEN + 1, b"x")
    gang = GangRecord(database, job_id, claimed.job.generation)
    gang.forget(gang.look({})[1])
    assert record.tell(UNTAKEN + 1, b"x")


def test_the_first_failure_of_a_member_stays_with_its_moment(database: Database, store: Store) -> None:
    job_id = create_gang(store)
    claimed, [record] = start(database, job_id)
    record.fail(JobError(type="user_error", message="first", rank=1), 5.0)
    record.fail(JobError(type="user_error", message="second", rank=1), 0.0)
    record.end("failed", "first", 1)
    [zero, one], _ = GangRecord(database, job_id, claimed.job.generation).look({})
    assert (zero.outcome, one.outcome, one.exit_code, one.is_gone) == (None, "failed", 1, True)
    assert one.error is not None
    assert one.error.message == "first"
    with database.read() as connection:
        now = database.time(connection)
    assert one.failed_at is not None
    assert 4.0 < now - one.failed_at < 60.0


def test_gpus_of_all_hosts_are_released_in_the_finishing_transaction(database: Database, store: Store) -> None:
    for name in ("gpu-a", "gpu-b"):
        add_host(database, host_state(name, gpus=1))
    job_id = create_gang(store, gpus=1)
    claimed, [record] = start(database, job_id)
    assert claimed.gpus == ("GPU-gpu-a-0",)
    record.tell(1, b"late")
    record.end("drained", None, 0, quarantine=True)
    record_of(database, claimed).requeue("drained", "the worker was shut down")
    with database.read() as connection:
        rows = connection.execute(sa.select(gpus.c.job_id, gpus.c.quarantined).order_by(gpus.c.host)).all()
        left = connection.execute(sa.select(member_messages)).all()
    assert [tuple(row) for row in rows] == [(None, False), (None, True)], "what would not die holds its own GPU only"
    assert left == []
