"""F10: a stop that comes at any moment ends the job as stopped, with nothing left and nothing trained after it."""

import random
import time

import pytest

from epochcast.jobs import Status
from tests.faults.cluster import Cluster
from tests.faults.scripts import DEAF
from tests.waiting import wait_until

TRIES = 12
SEED = 10


@pytest.fixture
def cluster(on_sqlite: Cluster) -> Cluster:
    return on_sqlite


def test_f10_stopped_while_queued_or_placed_it_never_begins(cluster: Cluster) -> None:
    with cluster.watched() as audience:
        too_large = cluster.submit(resources={"gpus": 8})
        body = cluster.body()
        for worker in cluster.workers.values():
            worker.freeze()  # what is placed is not claimed
        placed = cluster.post(body)
        wait_until(lambda: cluster.job(placed).hosts, "the placement", timeout_s=20)
        for job_id in (too_large, placed):
            audience.follow(job_id)
            cluster.stop(job_id)
            assert cluster.job(job_id).status is Status.STOPPED
        cluster.heal()
    assert [cluster.job(job_id).attempt for job_id in (too_large, placed)] == [0, 0]


def test_f10_stopped_at_any_moment_of_its_start_it_ends_stopped(cluster: Cluster) -> None:
    """Between claim and the script's first line there are hundreds of moments: each try stops at another."""
    moments = random.Random(SEED)
    print(f"seed {SEED}")
    with cluster.watched() as audience:
        body = cluster.body()
        job_ids = []
        for _ in range(TRIES):
            job_id = cluster.post(body)
            job_ids.append(job_id)
            audience.follow(job_id, kinds=("ws",))
            time.sleep(moments.uniform(0, 0.6))  # the fault itself: a stop at an unforeseen moment
            cluster.stop(job_id)
    assert {cluster.job(job_id).status for job_id in job_ids} == {Status.STOPPED}
    began = [bool(cluster.took_steps(job_id)) for job_id in job_ids]
    claimed = [cluster.job(job_id).attempt == 1 for job_id in job_ids]
    print(f"{TRIES} stops: {claimed.count(False)} before the claim, {began.count(True)} while it trained")


def test_f10_stopped_in_mid_step_it_checkpoints_and_deaf_it_is_killed(cluster: Cluster) -> None:
    with cluster.watched() as audience:
        trains, deaf = cluster.submit(args=["0.1"]), cluster.submit(DEAF)
        for job_id in (trains, deaf):
            audience.follow(job_id)
            cluster.wait_steps(job_id, 10)
            cluster.stop(job_id)
    assert [cluster.outcomes(job_id) for job_id in (trains, deaf)] == [["stopped"], ["stopped"]]
    assert [row["kind"] for row in cluster.queries.artifacts(trains)].count("checkpoint") >= 1
