"""Which job goes where, and why the others wait, on SQLite and PostgreSQL."""

import threading

import sqlalchemy as sa

from epochcast.jobs import Status
from shared.database import Database
from shared.fleet import Fleet
from shared.placement import PLACED_AT_ONCE, Placed, place
from shared.recovery import Recovery
from shared.store import Store
from shared.tables import gpus, hosts, jobs, placements
from tests.shared.records import add_host, claim_placed, create, host_state, spec


def test_priority_then_age_decides_who_gets_the_last_slot(database: Database, store: Store) -> None:
    add_host(database, host_state(slots=2))
    old, urgent, young = create(store), create(store, priority=5), create(store)
    assert place(database) == [Placed(urgent, "host-1"), Placed(old, "host-1")]
    waiting = store.get(young)
    assert waiting.pending_reason == "needs a CPU slot; all slots of all hosts are taken"
    assert waiting.queue_position == 3
    assert store.get(old).pending_reason is None


def test_without_a_host_a_job_waits_and_says_so(database: Database, store: Store) -> None:
    job_id = create(store)
    assert place(database) == []
    assert store.get(job_id).pending_reason == "no host is ready"


def test_gpus_are_reserved_all_or_none_and_by_free_bytes(database: Database, store: Store) -> None:
    add_host(database, host_state("small", gpus=2))
    add_host(database, host_state("full", gpus=4, free_gib=1))
    four = create(store, gpus=4)
    two = create(store, gpus=2)
    large = store.create(
        spec().model_copy(
            update={"resources": spec().resources.model_copy(update={"gpus": 3, "gpu_memory_gib": 20.0})}
        ),
        "alice",
    )[0].job_id
    assert set(place(database)) == {Placed(four, "full"), Placed(two, "small")}
    reason = store.get(large).pending_reason
    assert reason is not None
    assert reason.startswith("needs 3 GPUs on one host with 20 GiB free; the largest free is 0")
    with database.read() as connection:
        held = connection.execute(
            sa.select(gpus.c.job_id, sa.func.count()).where(gpus.c.job_id.is_not(None)).group_by(gpus.c.job_id)
        )
        assert {tuple(row) for row in held} == {(four, 4), (two, 2)}


def test_draining_and_silent_hosts_get_nothing(database: Database, store: Store) -> None:
    for name in ("draining", "silent"):
        add_host(database, host_state(name))
    Fleet(database).set_draining("draining", True)
    with database.write() as connection:
        connection.execute(sa.update(hosts).where(hosts.c.name == "silent").values(heartbeat_at=1.0))
    create(store)
    assert place(database) == []
    assert {host["name"]: host["status"] for host in Fleet(database).hosts()} == {
        "draining": "draining",
        "silent": "unreachable",
    }
    Fleet(database).set_draining("draining", False)
    assert len(place(database)) == 1


def test_more_than_one_transaction_may_hold_are_placed_in_one_pass(database: Database, store: Store) -> None:
    count = PLACED_AT_ONCE[database.engine.dialect.name] + 3
    add_host(database, host_state(slots=count))
    first = create(store)
    with database.write() as connection:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == first)).one()._asdict()
        del row["id"]
        connection.execute(jobs.insert(), [row] * count)
    with database.read() as connection:
        ids = list(connection.execute(sa.select(jobs.c.id).order_by(jobs.c.id)).scalars())
    assert [one.job_id for one in place(database)] == ids[:count]
    assert store.get(ids[-1]).pending_reason is not None


def test_an_owner_over_the_limit_waits_while_others_go(database: Database, store: Store) -> None:
    add_host(database, host_state(slots=5))
    mine = [create(store, "alice") for _ in range(2)]
    yours = create(store, "bob")
    assert {placed.job_id for placed in place(database, running_per_owner=1)} == {mine[0], yours}
    assert store.get(mine[1]).pending_reason == "alice has 1 running jobs; the limit per owner is 1"


def test_an_owner_at_the_limit_goes_on_when_one_of_their_jobs_ends(database: Database, store: Store) -> None:
    add_host(database, host_state(slots=5))
    first, second = create(store, "alice"), create(store, "alice")
    claim_placed(database, first)  # without a limit: both are placed
    third, yours = create(store, "alice"), create(store, "bob", priority=-1)
    assert [one.job_id for one in place(database, running_per_owner=2)] == [yours], "placed counts as running"
    assert store.get(third).expected_start_at is None
    store.request_stop(second)
    assert [one.job_id for one in place(database, running_per_owner=2)] == [third]


def test_an_unclaimed_placement_goes_to_another_host_next_time(database: Database, store: Store) -> None:
    add_host(database, host_state("a"))
    add_host(database, host_state("b"))
    job_id = create(store)
    [first] = place(database)
    assert Recovery(database).release_placement(job_id, 1, first.host, avoid_s=600)
    [second] = place(database)
    assert second.host != first.host
    assert Recovery(database).release_placement(job_id, 1, second.host, avoid_s=600)
    assert len(place(database)) == 1, "a host to avoid is better than none"


def test_a_claimed_job_keeps_its_placement_when_somebody_wants_to_release_it(database: Database, store: Store) -> None:
    add_host(database, host_state())
    job_id = create(store)
    claim_placed(database, job_id)
    assert not Recovery(database).release_placement(job_id, 1, "host-1", avoid_s=600)
    assert not Recovery(database).release_placement(job_id, 2, "host-1", avoid_s=600)
    assert store.get(job_id).status is Status.RUNNING


def test_a_host_that_leaves_gives_back_only_what_is_placed_on_it(database: Database, store: Store) -> None:
    add_host(database, host_state("a", gpus=1))
    add_host(database, host_state("b", gpus=1))
    here, there, running = create(store, gpus=1), create(store, gpus=1), create(store)
    where = {placed.job_id: placed.host for placed in place(database)}
    claim_placed(database, running, where[running])
    assert Recovery(database).release_host(where[here]) == [here]
    with database.read() as connection:
        held = connection.execute(sa.select(gpus.c.job_id).where(gpus.c.job_id.is_not(None))).scalars().all()
        placed = connection.execute(sa.select(placements.c.job_id).order_by(placements.c.job_id)).scalars().all()
    assert (held, placed) == ([there], [there, running])


def test_competing_dispatchers_never_place_twice_or_beyond_the_slots(database: Database, store: Store) -> None:
    add_host(database, host_state(slots=7))
    for _ in range(12):
        create(store)
    results: list[Placed] = []

    def dispatch() -> None:
        results.extend(place(database))

    threads = [threading.Thread(target=dispatch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(set(results)) == 7
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(placements)).scalar_one() == 7
