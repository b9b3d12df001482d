"""A job's states under any order of calls, on both databases: no illegal change, no stuck state, no stale write."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test

from shared.database import Database
from shared.event_log import EventLog
from shared.settings import Settings
from tests.faults.checker import Checker
from tests.faults.job_machine import JobMachine

# More of them: FAULTS_EXAMPLES=500 pytest tests/faults/test_job_machine.py
EXAMPLES = int(os.environ.get("FAULTS_EXAMPLES", "20"))


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    opened = Database(settings.database_url.get_secret_value())
    yield opened
    opened.close()


def test_no_order_of_calls_makes_an_illegal_change_or_leaves_a_job_stuck(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    with redis.Redis.from_url(settings.events_redis_url) as client:

        def machine() -> JobMachine:
            client.flushall()
            checker = Checker(settings, tmp_path)
            return JobMachine(database, EventLog(client), checker)

        how = hypothesis_settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(machine, settings=how)  # type: ignore[arg-type]
