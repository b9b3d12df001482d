"""What should be rare is counted once for the whole fleet, with the transaction that it belongs to."""

import threading

import pytest

from shared.counters import Counted, count, count_apart, totals
from shared.database import Database
from shared.recovery import Recovery
from shared.store import Store
from tests.shared.records import add_host, claim_placed, expire_lease, host_state, spec


@pytest.fixture
def database(database: Database) -> Database:
    add_host(database, host_state())
    return database


def test_a_reap_is_counted_with_the_job_that_it_takes_back_and_no_other_look(database: Database) -> None:
    assert totals(database) == dict.fromkeys(Counted, 0)
    job_id = Store(database).create(spec(), "alice")[0].job_id
    claim_placed(database, job_id)
    assert Recovery(database).reap() == []
    expire_lease(database, job_id)
    assert Recovery(database).reap() == [job_id]
    assert Recovery(database).reap() == []
    assert totals(database) == dict.fromkeys(Counted, 0) | {Counted.REAPED: 1}


def test_many_who_count_at_once_lose_nothing(database: Database) -> None:
    def add() -> None:
        for _ in range(10):
            count_apart(database, Counted.SELF_KILLS)

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals(database)[Counted.SELF_KILLS] == 60


def test_what_is_rolled_back_has_not_been_counted(database: Database) -> None:
    def fail_after_counting() -> None:
        with database.write() as connection:
            count(connection, Counted.REAPED)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_counting()
    assert totals(database)[Counted.REAPED] == 0
