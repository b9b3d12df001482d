"""F18: the disk of an attempt's folder is full: the host gives the job back, and the next attempt ends it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from epochcast.jobs import Status
from tests.faults.checker import Checker
from tests.faults.scripts import TRAIN
from tests.faults.steps import with_steps
from tests.waiting import wait_until
from tests.worker.conftest import HASTY
from tests.worker.host import Host

EPOCHS = 12
# Enough for some epochs of the journal, not for all of them.
ROOM_BYTES = 3000


@pytest.mark.postgres  # SQLite's own file would be on the full disk
def test_f18_a_full_disk_costs_the_attempt_and_not_the_job(
    make_host: Callable[..., Host], postgres_url: str, tmp_path: Path
) -> None:
    host, steps = make_host(**HASTY, database_url=postgres_url), tmp_path / "steps"
    script = with_steps(TRAIN, steps)
    whole = host.run(script, total_epochs=EPOCHS).job_id
    job_id = host.submit(total_epochs=EPOCHS)
    host.wait_ended(host.attempt(job_id, script, hurt=f"disk={ROOM_BYTES}"))
    assert host.store.get(job_id).status is Status.QUEUED, host.output
    [first] = host.queries.attempts(job_id)
    assert first["outcome"] == "lost"
    assert "File too large" in first["reason"]
    host.wait_placed(job_id)
    host.wait_ended(host.attempt(job_id, script))
    assert host.store.get(job_id).status is Status.SUCCEEDED
    wait_until(lambda: not host.store.unannounced(), "the last announcement")
    checker = Checker(host.settings, steps)
    checker.assert_whole(weights=checker.weights(whole))
