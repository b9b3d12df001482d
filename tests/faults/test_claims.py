"""F20: eight processes claim three hundred jobs at once, on SQLite and on PostgreSQL: each job has one attempt."""

import subprocess
import sys
from pathlib import Path

import redis

from epochcast.jobs import Status
from shared.announcer import Announcer
from shared.database import Database
from shared.event_log import EventLog
from shared.placement import place
from shared.processes import dies_with_parent
from shared.settings import Settings
from shared.store import Store
from tests.faults.checker import Checker
from tests.faults.service import CHECKOUT
from tests.faults.steps import read_steps
from tests.shared.records import add_host, host_state, spec

PROCESSES, JOBS = 8, 300


def test_f20_eight_processes_that_claim_three_hundred_jobs_share_them(settings: Settings, tmp_path: Path) -> None:
    database = Database(settings.database_url.get_secret_value())
    store, steps = Store(database), tmp_path / "steps"
    steps.mkdir()
    add_host(database, host_state(slots=JOBS))
    job_ids = [store.create(spec(), "alice")[0].job_id for _ in range(JOBS)]
    assert len(place(database)) == JOBS
    claimants = [start(settings, steps, number) for number in range(PROCESSES)]
    for claimant in claimants:
        assert claimant.stdin is not None
        claimant.stdin.write("!")
        claimant.stdin.flush()
    won = [int(claimant.communicate(timeout=150)[0]) for claimant in claimants]
    assert sum(won) == JOBS, won
    assert {store.get(job_id).status for job_id in job_ids} == {Status.SUCCEEDED}
    assert {len(read_steps(steps, job_id)) for job_id in job_ids} == {1}
    with redis.Redis.from_url(settings.events_redis_url) as client:
        while store.unannounced():  # a page ends in the middle of a job, and the next pass goes on
            Announcer(database, EventLog(client)).run()
    Checker(settings, steps).assert_whole()
    print(f"won: {won}")
    database.close()


def start(settings: Settings, steps: Path, seed: int) -> "subprocess.Popen[str]":
    url = settings.database_url.get_secret_value()
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.claimant", url, str(steps), str(seed)],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=dies_with_parent(),
    )
