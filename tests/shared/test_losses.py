"""What a lost attempt leaves: the job's place in the line, other hosts first, and GPUs as they are."""

import sqlalchemy as sa

from shared.claims import claim
from shared.database import Database
from shared.fleet import Fleet
from shared.placement import place
from shared.recovery import Recovery
from shared.store import Store
from shared.tables import attempts, avoided_hosts, gpus
from tests.shared.gangs import create_gang, expire_member, placed_hosts, start
from tests.shared.records import IDENTITY, add_host, claim_placed, create, expire_lease, host_state, record_of


def lose(database: Database, job_id: int, host: str, reason: str = "disk full", **how: str) -> None:
    """An attempt of the job, which is placed there, that comes to nothing."""
    claimed = claim(database, job_id, host, 120, 1, IDENTITY)
    assert claimed is not None
    generation = claimed.job.generation
    assert Recovery(database).lose(job_id, reason, only_expired=False, generation=generation, **how)


def test_a_host_that_loses_every_attempt_at_once_does_not_fail_the_job(database: Database, store: Store) -> None:
    """A full disk makes a host the emptiest of all: whatever comes is lost there within a second."""
    for name in ("a-full", "b-well"):
        add_host(database, host_state(name))
    job_id = create(store)
    [first] = place(database)
    lose(database, job_id, first.host)
    [second] = place(database)
    assert {first.host, second.host} == {"a-full", "b-well"}
    lose(database, job_id, second.host)
    assert len(place(database)) == 1, "a host to avoid is better than none"


def test_a_lost_job_keeps_its_place_in_the_line(database: Database, store: Store) -> None:
    add_host(database, host_state(slots=1))
    oldest = create(store)
    place(database)
    behind = create(store)
    claimed = claim(database, oldest, "host-1", 120, 1, IDENTITY)
    assert claimed is not None
    expire_lease(database, oldest)
    assert Recovery(database).reap() == [oldest]
    assert [store.get(job_id).queue_position for job_id in (oldest, behind)] == [1, 2]
    assert [one.job_id for one in place(database)] == [oldest]


def test_a_gpu_that_somebody_else_has_filled_is_not_given_away_once_more(database: Database, store: Store) -> None:
    """The attempt had waited for its memory in vain: it had used none of it itself."""
    add_host(database, host_state(gpus=1, free_gib=70))
    job_id = create(store, gpus=1, gpu_memory_gib=60.0)
    [placed] = place(database)
    assert Fleet(database).heartbeat(host_state(gpus=1, free_gib=5))
    lose(database, job_id, placed.host, "GPU was placed with 60 GiB free, but is 5.0 GiB free")
    assert place(database) == []
    assert Fleet(database).heartbeat(host_state(gpus=1, free_gib=70))
    assert [one.job_id for one in place(database)] == [job_id]


def test_the_memory_of_a_lost_attempt_that_had_begun_is_free_with_it(database: Database, store: Store) -> None:
    add_host(database, host_state(gpus=1, free_gib=70))
    job_id = create(store, gpus=1, gpu_memory_gib=60.0)
    record = record_of(database, claim_placed(database, job_id))
    record.record_launcher(4711, 1)
    assert Fleet(database).heartbeat(host_state(gpus=1, free_gib=5))
    expire_lease(database, job_id)
    assert Recovery(database).reap() == [job_id]
    assert [one.job_id for one in place(database)] == [job_id]


def test_a_lost_attempt_whose_tree_would_not_die_leaves_its_gpus_in_quarantine(
    database: Database, store: Store
) -> None:
    add_host(database, host_state(gpus=2))
    job_id, other = create(store, gpus=1), create(store, gpus=1)
    place(database)
    lose(database, job_id, "host-1", "SQL was away for longer than the licence", stuck_on="host-1")
    with database.read() as connection:
        cards = connection.execute(sa.select(gpus.c.job_id, gpus.c.quarantined).order_by(gpus.c.job_id)).all()
    assert sorted(cards, key=lambda card: card.quarantined) == [(other, False), (None, True)]
    assert place(database) == [], "none is free"


def test_of_several_hosts_the_one_that_was_lost_is_avoided(database: Database, store: Store) -> None:
    for number in range(3):
        add_host(database, host_state(f"host-{number}", slots=1))
    job_id = create_gang(store)
    claimed, _ = start(database, job_id)
    zero, one = placed_hosts(database, job_id)
    expire_member(database, job_id, 1)
    assert Recovery(database).lose(
        job_id, f"host {one} was lost", only_expired=False, generation=claimed.job.generation
    )
    with database.read() as connection:
        assert list(connection.execute(sa.select(avoided_hosts.c.host)).scalars()) == [one]
        assert connection.execute(sa.select(attempts.c.outcome)).scalar_one() == "lost"
    place(database)
    assert one not in placed_hosts(database, job_id)
    assert zero in placed_hosts(database, job_id)
