"""Whether a host lives and whether its jobs train are two things, shown apart."""

from typing import Any

import pytest
import sqlalchemy as sa

from shared.attempt import AttemptRecord, MetricPoint, ProgressState
from shared.database import Database
from shared.fleet import UNREACHABLE_AFTER_S, Fleet
from shared.store import Store
from shared.tables import attempts, hosts, jobs
from tests.shared.records import add_host, claim_placed, host_state, record_of, spec


@pytest.fixture
def database(database: Database) -> Database:
    add_host(database, host_state())
    return database


@pytest.fixture
def record(database: Database) -> AttemptRecord:
    job_id = Store(database).create(spec(total_epochs=10), "alice")[0].job_id
    return record_of(database, claim_placed(database, job_id))


def shown(database: Database) -> dict[str, Any]:
    [host] = Fleet(database).hosts()
    return host


def let_pass(database: Database, seconds: float, *columns: sa.Column[float]) -> None:
    """As if that much time had gone by since."""
    with database.write() as connection:
        for column in columns:
            connection.execute(sa.update(column.table).values({column: column - seconds}))


def test_a_job_stalls_on_a_host_that_is_well(database: Database, record: AttemptRecord) -> None:
    let_pass(database, 2000, attempts.c.started_at)
    record.record(ProgressState(4, 0.4, None, {}, eta_s=600.0), [], None)  # 100 s an epoch
    [training] = shown(database)["training"]
    assert not training["is_stalled"]
    assert training["reported_at"] is not None
    assert training["silent_s"] < 60
    let_pass(database, 590, jobs.c.reported_at)
    assert not shown(database)["training"][0]["is_stalled"]
    let_pass(database, 30, jobs.c.reported_at)
    host = shown(database)
    assert host["training"][0]["is_stalled"]
    assert 610 < host["training"][0]["silent_s"] < 700
    assert (host["status"], host["heartbeat_age_s"] < UNREACHABLE_AFTER_S) == ("ready", True)
    record.record(None, [MetricPoint(5, 17, {"loss": 1.0}, 0.0)], None)
    assert not shown(database)["training"][0]["is_stalled"], "a report by step is a sign of life too"


def test_long_epochs_explain_a_long_silence(database: Database, record: AttemptRecord) -> None:
    let_pass(database, 2000, attempts.c.started_at)
    record.record(ProgressState(4, 0.4, None, {}, eta_s=6 * 300.0), [], None)
    let_pass(database, 1400, jobs.c.reported_at)
    assert not shown(database)["training"][0]["is_stalled"]
    let_pass(database, 200, jobs.c.reported_at)
    assert shown(database)["training"][0]["is_stalled"]


def test_before_the_first_report_the_attempts_start_counts(database: Database, record: AttemptRecord) -> None:
    let_pass(database, 50, attempts.c.started_at)
    [training] = shown(database)["training"]
    assert training["reported_at"] is None
    assert 50 <= training["silent_s"] < 110
    let_pass(database, 600, attempts.c.started_at)
    assert shown(database)["training"][0]["is_stalled"]


def test_a_host_falls_silent_while_its_job_has_just_reported(database: Database, record: AttemptRecord) -> None:
    record.record(ProgressState(4, 0.4, None, {}, None), [], None)
    let_pass(database, UNREACHABLE_AFTER_S + 0.1, hosts.c.heartbeat_at)
    host = shown(database)
    assert host["status"] == "unreachable"
    assert host["heartbeat_age_s"] >= UNREACHABLE_AFTER_S
    assert not host["training"][0]["is_stalled"]
