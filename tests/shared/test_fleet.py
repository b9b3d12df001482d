"""Hosts in the record: whose name it is, what a heartbeat tells, and clocks that disagree."""

import time
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from epochcast.answers import Host
from epochcast.jobs import Status
from shared.attempt import LeaseLost
from shared.database import Database
from shared.errors import HostNameTaken, HostNotFound
from shared.fleet import UNREACHABLE_AFTER_S, Fleet
from shared.placement import place
from shared.recovery import Recovery
from shared.store import Store
from shared.tables import gpus, hosts
from tests.shared.records import add_host, claim_placed, host_state, record_of, spec

HOUR_S = 3600.0
LEASE_S = 120.0


def gone(_instance: str) -> bool:
    return False


def alive(_instance: str) -> bool:
    return True


def let_be_silent(database: Database, seconds: float) -> None:
    with database.write() as connection:
        connection.execute(hosts.update().values(heartbeat_at=hosts.c.heartbeat_at - seconds))


def test_a_name_is_refused_while_another_machine_has_it_and_free_when_that_was_silent(database: Database) -> None:
    fleet = Fleet(database)
    fleet.register(host_state("gpu-1"), LEASE_S, gone)
    other = replace(host_state("gpu-1", slots=9), instance="other", boot_id="another machine")
    for _ in range(2):
        with pytest.raises(HostNameTaken, match=r"host name gpu-1 is taken.*EPOCHCAST_HOST_NAME"):
            fleet.register(other, LEASE_S, gone)
        let_be_silent(database, LEASE_S / 2 - 5)
    assert fleet.hosts()[0]["slots"]["total"] == 2, "nothing of who was refused is written"
    let_be_silent(database, 10)
    fleet.register(other, LEASE_S, gone)
    assert fleet.hosts()[0]["slots"]["total"] == 9
    assert not fleet.heartbeat(host_state("gpu-1")), "who had the name must end"
    assert fleet.hosts()[0]["slots"]["total"] == 9


def test_on_the_same_machine_the_process_itself_says_whether_the_name_is_free(database: Database) -> None:
    fleet = Fleet(database)
    fleet.register(host_state("gpu-1"), LEASE_S, gone)
    restarted = replace(host_state("gpu-1"), instance="restarted")
    let_be_silent(database, 10 * LEASE_S)  # frozen, but there
    with pytest.raises(HostNameTaken):
        fleet.register(restarted, LEASE_S, alive)
    fleet.register(restarted, LEASE_S, gone)
    assert fleet.heartbeat(restarted)


def test_a_heartbeat_that_was_under_way_makes_no_host_ready_that_has_left(database: Database) -> None:
    fleet = Fleet(database)
    fleet.register(host_state("gpu-1"), LEASE_S, gone)
    fleet.leave("gpu-1", host_state("gpu-1").instance)
    assert not fleet.heartbeat(host_state("gpu-1"))
    assert fleet.host("gpu-1")["status"] == "unreachable"
    assert fleet.reachable() == []
    fleet.register(replace(host_state("gpu-1"), instance="restarted"), LEASE_S, gone)
    assert fleet.reachable() == ["gpu-1"]


def test_pages_of_the_fleet_hold_what_the_whole_does(database: Database) -> None:
    fleet, store = Fleet(database), Store(database)
    for number in range(5):
        add_host(database, host_state(f"gpu-{number}", gpus=2))
    for resources in ({"gpus": 1}, {"gpus": 2}, {"gpus": 1, "nodes": 2}, {}):
        store.create(spec(**resources), "alice")
    place(database)
    for job_id in (1, 2, 4):
        [placed] = store.get(job_id).hosts
        claim_placed(database, job_id, host=placed.name)
    whole = fleet.hosts()
    assert sum(len(host["jobs"]) for host in whole) == 5
    paged, after, pages = [], None, 0
    while pages == 0 or after is not None:
        items, after = fleet.page(2, after)
        paged += items
        pages += 1
    assert pages == 3

    def without_age(host: dict[str, Any]) -> dict[str, Any]:
        trains = [{name: told for name, told in one.items() if name != "silent_s"} for one in host["training"]]
        return host | {"heartbeat_age_s": None, "training": trains}

    assert [without_age(host) for host in paged] == [without_age(host) for host in whole]
    pair = [host.name for host in store.get(3).hosts]
    assert [host["name"] for host in fleet.page(10, job_id=3)[0]] == pair
    assert fleet.page(10, job_id=99) == ([], None)


def test_an_unknown_host_is_neither_drained_nor_resumed(database: Database) -> None:
    for draining in (True, False):
        with pytest.raises(HostNotFound, match="host gpu-9 has never registered"):
            Fleet(database).set_draining("gpu-9", draining)
    assert Fleet(database).hosts() == []


def test_a_drained_host_stays_so_when_its_worker_starts_again(database: Database) -> None:
    add_host(database, host_state("gpu-1"))
    Fleet(database).set_draining("gpu-1", True)
    add_host(database, replace(host_state("gpu-1"), instance="restarted"))
    assert Fleet(database).hosts()[0]["status"] == "draining"


def test_a_heartbeat_tells_of_gpus_that_came_changed_and_went(database: Database) -> None:
    fleet = Fleet(database)
    add_host(database, host_state("a", gpus=2, free_gib=79))
    with database.write() as connection:
        connection.execute(gpus.update().values(quarantined=True))
    full = host_state("a", gpus=3, free_gib=1)
    assert fleet.heartbeat(full)
    shown = fleet.hosts()[0]["gpus"]
    assert [card["quarantined"] for card in shown] == [True, True, False], (
        "not empty: whatever is there may not be gone"
    )
    assert {card["memory"]["used_gib"] for card in shown} == {79.0}
    used = replace(full.gpus[0], used_bytes=0, users=({"pid": 1, "used_bytes": 0},))
    empty = replace(full.gpus[1], used_bytes=2**29)
    fleet.heartbeat(replace(full, gpus=(used, empty)))
    shown = fleet.hosts()[0]["gpus"]
    assert [card["quarantined"] for card in shown] == [True, False]
    assert shown[0]["users"] == [{"pid": 1, "used_bytes": 0}]


def test_a_driver_that_shows_no_gpu_for_a_while_ends_no_quarantine(database: Database) -> None:
    fleet, full = Fleet(database), host_state("a", gpus=1, free_gib=1)
    add_host(database, full)
    with database.write() as connection:
        connection.execute(gpus.update().values(quarantined=True))
    for state in (host_state("a"), full):
        assert fleet.heartbeat(state)
    assert [card["quarantined"] for card in fleet.host("a")["gpus"]] == [True]
    add_host(database, host_state("a"))
    assert fleet.host("a")["gpus"] == [], "a new worker says what there is"


def keys(value: Any) -> Any:
    """The names of all fields, at every depth."""
    match value:
        case dict():
            return {name: keys(below) for name, below in value.items()}
        case list():
            return [keys(below) for below in value]
    return None


def test_a_host_is_shown_with_exactly_the_fields_that_the_client_knows(database: Database) -> None:
    """The gateway writes the list as it is, so no type stands between."""
    add_host(database, host_state("a", gpus=2))
    job_id = Store(database).create(spec(gpus=1), "alice")[0].job_id
    claim_placed(database, job_id, host="a")
    [shown] = Fleet(database).hosts()
    assert shown["training"]
    assert keys(Host.model_validate(shown).model_dump()) == keys(shown)


def test_a_gpu_that_two_hosts_name_is_the_jobs_that_holds_it(database: Database) -> None:
    """Two workers of one machine: whoever beat last took the GPU along, and its job then trained without."""
    add_host(database, host_state("a", gpus=1))
    job_id = Store(database).create(spec(gpus=1), "alice")[0].job_id
    [placed] = place(database)
    same = replace(host_state("b"), gpus=host_state("a", gpus=1).gpus)
    add_host(database, same)
    assert Fleet(database).heartbeat(same)
    assert claim_placed(database, job_id, host=placed.host).gpus == ("GPU-a-0",)


def test_a_gpu_that_a_job_holds_stays_in_the_record_when_the_driver_loses_it(database: Database) -> None:
    add_host(database, host_state("a", gpus=1))
    job_id = Store(database).create(spec(gpus=1), "alice")[0].job_id
    place(database)
    Fleet(database).heartbeat(host_state("a"))
    [card] = Fleet(database).hosts()[0]["gpus"]
    assert card["job_id"] == job_id


# --- clocks an hour apart


@pytest.mark.postgres
@pytest.mark.parametrize("apart_s", [HOUR_S, -HOUR_S])
def test_on_postgresql_a_process_an_hour_off_sees_leases_and_hosts_as_everybody(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, apart_s: float
) -> None:
    here = Database(postgres_url)
    add_host(here, host_state())
    store = Store(here)
    running, waiting = (store.create(spec(), "alice")[0].job_id for _ in range(2))
    record = record_of(here, claim_placed(here, running))
    told = time.time
    monkeypatch.setattr(time, "time", lambda: told() + apart_s)
    off = Database(postgres_url)
    assert Recovery(off).reap() == []
    assert Fleet(off).hosts()[0]["status"] == "ready"
    assert Fleet(off).hosts()[0]["heartbeat_age_s"] < UNREACHABLE_AFTER_S
    assert store.get(waiting).hosts[0].name == "host-1"
    record_of(off, claim_placed(off, waiting)).heartbeat(LEASE_S)
    monkeypatch.undo()
    assert Recovery(here).reap() == [], "what the one that is off renewed holds for everybody"
    assert not record.heartbeat(LEASE_S).stop_requested
    for database in (here, off):
        database.close()


def test_on_sqlite_a_clock_an_hour_ahead_may_take_a_job_back_but_its_owner_then_writes_nothing(sqlite_url: str) -> None:
    here = Database(sqlite_url)
    ahead = Database(sqlite_url, clock=lambda: time.time() + HOUR_S)
    add_host(here, host_state())
    store = Store(here)
    job_id = store.create(spec(), "alice")[0].job_id
    record = record_of(here, claim_placed(here, job_id))
    assert Recovery(ahead).reap() == [job_id]
    with pytest.raises(LeaseLost):
        record.heartbeat(LEASE_S)
    assert store.get(job_id).status is Status.QUEUED
    with here.read() as connection:
        assert connection.execute(sa.select(hosts.c.name)).scalars().all() == ["host-1"]
    here.close()
    ahead.close()
