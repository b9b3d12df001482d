"""Of many dispatchers one makes each second's pass, and none is needed for it."""

import threading
from collections.abc import Callable

import pytest
import redis
import sqlalchemy as sa

from shared.celery_app import Poker
from shared.database import Database
from shared.dispatcher import Dispatcher
from shared.embedded import free_port
from shared.event_log import EventLog, log_key
from shared.settings import Settings
from shared.store import Store
from shared.tables import placements, turns
from shared.turns import Turns
from tests.shared.records import add_host, host_state, spec
from tests.waiting import wait_until

HOUR_S = 3600.0


def test_of_all_who_ask_at_once_one_has_the_turn(database: Database) -> None:
    for _ in range(2):  # the very first turn, and a later one
        gate = threading.Barrier(8)
        taken: list[bool] = []

        def ask(gate: threading.Barrier = gate, taken: list[bool] = taken) -> None:
            gate.wait(60)
            taken.append(Turns(database, HOUR_S).take())

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == [False] * 7 + [True]
        assert not Turns(database, HOUR_S).take()
        with database.write() as connection:
            connection.execute(sa.update(turns).values(taken_at=turns.c.taken_at - 2 * HOUR_S))


def test_a_turn_that_was_taken_by_a_clock_an_hour_ahead_holds_nobody_up(sqlite_url: str) -> None:
    ahead = Database(sqlite_url, clock=lambda: 10_000_000.0 + HOUR_S)
    here = Database(sqlite_url, clock=lambda: 10_000_000.0)
    assert Turns(ahead, 0.9).take()
    assert Turns(here, 0.9).take()
    assert not Turns(here, 0.9).take()
    ahead.close()
    here.close()


def test_who_has_no_way_to_redis_takes_no_turn_from_those_who_have(sqlite_settings: Settings) -> None:
    database = Database(sqlite_settings.database_url.get_secret_value())
    client = redis.Redis.from_url(sqlite_settings.events_redis_url)
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    lame = Dispatcher(sqlite_settings, database, EventLog(redis.Redis.from_url(nowhere)), Poker(nowhere))
    well = Dispatcher(
        sqlite_settings, database, EventLog(client), Poker(sqlite_settings.broker_url.get_secret_value()), rest_s=5.0
    )
    add_host(database, host_state(slots=10))
    store = Store(database)
    lame.start()
    well.start()
    try:
        for _ in range(2):
            job_id = store.create(spec(), "alice")[0].job_id
            # Who fails poke or announcement asks for no turn afterwards, so the other has them all.
            wait_until(lambda: client.exists(log_key(job_id)), "the announcement", timeout_s=30)  # noqa: B023
            wait_until(lambda: _pokes(database, job_id) > 0, "the poke", timeout_s=30)  # noqa: B023
    finally:
        lame.stop()
        well.stop()
        client.close()
        database.close()


def test_where_redis_is_away_from_all_they_take_turns_too(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand agents that each made a pass a second would take the record from those who renew their leases."""
    monkeypatch.setattr("shared.dispatcher.TURN_S", HOUR_S)
    database = Database(sqlite_settings.database_url.get_secret_value(), connections=12)
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    lame = [
        Dispatcher(sqlite_settings, database, EventLog(redis.Redis.from_url(nowhere)), Poker(nowhere)) for _ in range(3)
    ]
    Store(database).create(spec(), "alice")  # its announcement fails
    made: list[Dispatcher] = []
    for one in lame:
        one.run_once()

        def make(one: Dispatcher = one, pass_: Callable[[], None] = one.run_once) -> None:
            made.append(one)
            pass_()

        monkeypatch.setattr(one, "run_once", make)
        one.start()
    try:
        wait_until(lambda: all(one.passes >= 4 for one in lame), "three looks of each", timeout_s=30)
    finally:
        for one in lame:
            one.stop()
        database.close()
    assert len(made) == 1, "in an hour one of them makes a pass"


def _pokes(database: Database, job_id: int) -> int:
    """How often a job's host was poked; 0 before it is placed."""
    with database.read() as connection:
        return connection.execute(sa.select(placements.c.pokes).where(placements.c.job_id == job_id)).scalar() or 0
