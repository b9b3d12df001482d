"""Jobs on several hosts are placed on all of them or on none, on SQLite and PostgreSQL."""

import threading

import sqlalchemy as sa

from api.plan import plan
from shared.database import Database
from shared.fleet import Fleet, GpuState, HostState
from shared.placement import Placed, place
from shared.store import Store
from shared.tables import gpus, placements
from tests.shared.gangs import add_hosts, create_gang, placed_hosts
from tests.shared.records import add_host, host_state, spec


def gpu_host(name: str, *models: str) -> HostState:
    total = 80 * 2**30
    cards = tuple(GpuState(f"GPU-{name}-{index}", index, model, total, 0) for index, model in enumerate(models))
    return HostState(name, f"{name}-instance", "boot", "namespace", 2, 4, 2**34, 2**33, gpus=cards)


def test_a_job_gets_all_its_hosts_or_none_and_says_what_it_waits_for(database: Database, store: Store) -> None:
    add_hosts(database, 1)
    job_id = create_gang(store)
    assert place(database) == []
    assert store.get(job_id).pending_reason == "needs 2 hosts with a free CPU slot each; 1 is free (host-0)"
    assert placed_hosts(database, job_id) == []
    add_host(database, host_state("host-1", slots=3))
    assert set(place(database)) == {Placed(job_id, "host-0"), Placed(job_id, "host-1")}
    assert {host.name for host in store.get(job_id).hosts} == {"host-0", "host-1"}
    shown = {host["name"]: host for host in Fleet(database).hosts()}
    assert [shown[name]["jobs"] for name in ("host-0", "host-1")] == [[job_id], [job_id]]
    assert shown["host-1"]["slots"] == {"total": 3, "used": 1}, "one slot a host, whatever its processes"


def test_a_host_holds_at_most_one_member_of_a_job(database: Database, store: Store) -> None:
    add_host(database, host_state(slots=8))
    create_gang(store)
    assert place(database) == []


def test_gpus_are_counted_on_each_host_and_held_there(database: Database, store: Store) -> None:
    add_host(database, gpu_host("a", "H100", "H100"))
    add_host(database, gpu_host("b", "H100"))
    job_id = create_gang(store, gpus=2)
    assert place(database) == []
    assert store.get(job_id).pending_reason == "needs 2 hosts with 2 GPUs each; 1 is free (a)"
    add_host(database, gpu_host("c", "H100", "H100"))
    assert {placed.host for placed in place(database)} == {"a", "c"}
    assert [host.gpus for host in store.get(job_id).hosts] == [[0, 1], [0, 1]]
    with database.read() as connection:
        held = connection.execute(sa.select(gpus.c.host).where(gpus.c.job_id == job_id).order_by(gpus.c.host))
        assert list(held.scalars()) == ["a", "a", "c", "c"]


def test_the_hosts_of_a_job_get_one_model_of_gpu_where_they_can(database: Database, store: Store) -> None:
    add_host(database, gpu_host("a", "T4"))
    add_host(database, gpu_host("b", "H100", "T4"))
    add_host(database, gpu_host("c", "H100", "H100", "H100"))
    equal = create_gang(store, gpus=1)
    place(database)
    with database.read() as connection:
        models = connection.execute(sa.select(gpus.c.name).where(gpus.c.job_id == equal)).scalars().all()
    assert len(set(models)) == 1
    mixed = create_gang(store, nodes=2, gpus=1)
    place(database)
    assert len(placed_hosts(database, mixed)) == 2, "unequal ones are better than none"


def test_a_dry_run_names_the_hosts_that_fit_and_why_they_are_too_few(database: Database) -> None:
    add_hosts(database, 2)
    fits = plan(database, spec(nodes=2))
    assert (fits["hosts_that_fit"], fits["pending_reason"]) == (["host-0", "host-1"], None)
    waits = plan(database, spec(nodes=3))
    assert waits["hosts_that_fit"] == ["host-0", "host-1"]
    assert waits["pending_reason"] == "needs 3 hosts with a free CPU slot each; 2 are free (host-0, host-1)"


def test_competing_dispatchers_never_give_two_jobs_a_part_of_what_they_need(database: Database, store: Store) -> None:
    add_hosts(database, 2)
    first, second = create_gang(store), create_gang(store)
    results: list[Placed] = []
    threads = [threading.Thread(target=lambda: results.extend(place(database))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert placed_hosts(database, first) == ["host-0", "host-1"], "age decides"
    assert placed_hosts(database, second) == []
    with database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(placements)).scalar_one() == 2
