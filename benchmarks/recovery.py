"""How long after `kill -9` of a worker its job is known to be back in the queue, and takes its next step.

Two ways on: the same host's worker is started again (what a process manager does), or another host takes the job
once the lease has run out. The clock is the machine's monotonic one, which the script's own step log has too.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.harness.result import Result, Table, spread
from benchmarks.harness.submitting import forget_settings
from shared import database
from shared.embedded import RedisServer
from shared.processes import adopt_orphans
from shared.settings import Settings
from shared.tables import jobs
from tests.conftest import make_settings
from tests.faults.cluster import LEASES, Cluster
from tests.faults.service import alive
from tests.faults.subscribers import Audience, Joined
from tests.waiting import wait_until

EPOCHS, PAUSE_S = 60, 0.05
DEFAULT_LEASE_S = 120


@dataclass(frozen=True, slots=True)
class Recovered:
    """Seconds from the kill. `lease_left`: how long the attempt's lease still ran then."""

    tree_gone: float
    queued_seen: float
    running_seen: float
    first_step: float
    lease_left: float


def recover(cluster: Cluster, *, restarted: bool) -> Recovered:
    """Kills the worker of a training job; `restarted`: and starts it again at once."""
    audience = Audience(cluster.url)
    try:
        job_id = cluster.submit(epochs=EPOCHS, args=[str(PAUSE_S)])
        [subscriber] = audience.follow(job_id, kinds=("ws",))
        cluster.wait_checkpoint(job_id)
        worker = cluster.workers[cluster.attempt_row(job_id).host]
        killed_at = time.monotonic()
        below = worker.kill()
        lease_left = remaining_lease(cluster, job_id)
        wait_until(lambda: not alive(below), "the tree's end", timeout_s=60, every_s=0.002)
        gone_at = time.monotonic()
        if restarted:
            worker.start()
        cluster.wait_steps(job_id, 1, attempt=2)
        wait_until(lambda: seen(subscriber, "running", 2), "the status", timeout_s=60)
        cluster.wait_ended([job_id])
    finally:
        audience.close()
    first_step = next(step.at for step in cluster.took_steps(job_id) if step.attempt == 2)
    queued, running = seen(subscriber, "queued", 1), seen(subscriber, "running", 2)
    assert queued is not None
    assert running is not None
    cluster.heal()
    return Recovered(gone_at - killed_at, queued - killed_at, running - killed_at, first_step - killed_at, lease_left)


def seen(subscriber: Joined, status: str, attempt: int) -> float | None:
    """When a subscriber first had this status of this attempt."""

    def says(content: dict[str, Any]) -> bool:
        return content["status"] == status and content.get("attempt") == attempt

    return next((told.at for told in subscriber.told if says(told.content)), None)


def remaining_lease(cluster: Cluster, job_id: int) -> float:
    with cluster.database.read() as connection:
        left = sa.select(jobs.c.lease_until - cluster.database.now).where(jobs.c.id == job_id)
        return float(connection.execute(left).scalar_one())


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    forget_settings()
    adopt_orphans()
    url = f"sqlite:///{folder / 'epochcast.db'}"
    database.upgrade(url)
    with RedisServer(folder / "redis", persistent=True) as server:
        base = make_settings(url, server.url, folder)
        cluster = Cluster(Settings.model_validate({**base.model_dump(exclude_unset=True), **LEASES}), server, folder)
        try:
            cluster.start()
            cluster.wait_ended([cluster.submit()])  # everything has been used once
            yield cluster
        finally:
            cluster.close()


def measure(rounds: int, restarted_rounds: int) -> dict[str, list[Recovered]]:
    with tempfile.TemporaryDirectory(prefix="epochcast-bench-") as folder, running_cluster(Path(folder)) as cluster:
        return {
            "restarted": [recover(cluster, restarted=True) for _ in range(restarted_rounds)],
            "elsewhere": [recover(cluster, restarted=False) for _ in range(rounds)],
        }


def result_of(found: dict[str, list[Recovered]]) -> Result:
    names = {
        "restarted": "the worker is started again at once",
        "elsewhere": f"another host takes the job, lease {LEASES['lease_s']:g} s",
    }
    rows = []
    figures: dict[str, float] = {}
    for way, text in names.items():
        columns = {
            "tree_gone": [one.tree_gone for one in found[way]],
            "queued_seen": [one.queued_seen for one in found[way]],
            "running_seen": [one.running_seen for one in found[way]],
            "first_step": [one.first_step for one in found[way]],
        }
        rows.append((text, *(spread(values, 2) for values in columns.values())))
        figures |= {f"{way}_{name}_s": round(sorted(values)[len(values) // 2], 3) for name, values in columns.items()}
    over = {
        "queued_seen": [one.queued_seen - one.lease_left for one in found["elsewhere"]],
        "first_step": [one.first_step - one.lease_left for one in found["elsewhere"]],
    }
    rows.append(("the same, less what was left of the lease", "", *_over(over)))
    figures |= {f"over_lease_{name}_s": round(sorted(values)[len(values) // 2], 3) for name, values in over.items()}
    return Result(
        "recovery",
        "From `kill -9` of a worker to the next step",
        "A training job's worker is killed with SIGKILL. Seconds from the kill, medians of "
        f"{len(found['restarted'])} and {len(found['elsewhere'])}, with the lowest and the highest.",
        [Table(("what happens", "last process gone", "`queued` seen", "`running` seen", "first resumed step"), rows)],
        figures,
        [
            "Seen: by a WebSocket subscriber. First resumed step: by the script's own log.",
            "Started again, a worker ends what its predecessor left and gives its jobs back at once; most of the time "
            "is the start of Python, Celery and torch.",
            f"With the default lease another host takes over within {DEFAULT_LEASE_S} s and what the last row says: "
            "nobody may start before the lost host is sure to have stopped.",
        ],
    )


def _over(over: dict[str, list[float]]) -> tuple[str, str, str]:
    return spread(over["queued_seen"], 2), "", spread(over["first_step"], 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of waiting for the lease")
    parser.add_argument("--restarted-rounds", type=int, default=5)
    options = parser.parse_args()
    result_of(measure(options.rounds, options.restarted_rounds)).show()


if __name__ == "__main__":
    main()
