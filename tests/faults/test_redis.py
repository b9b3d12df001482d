"""F1-F4, F12, F13, F17: whatever happens to Redis, nothing is trained twice, lost, or told twice."""

import os
from functools import partial

import httpx2
import pytest
import redis
import sqlalchemy as sa

from shared.celery_app import Poker, queue_of
from shared.embedded import RedisServer
from shared.tables import placements
from tests.faults.cluster import NAMES, Cluster
from tests.waiting import wait_until

SLOW = ["0.03"]
# How long Redis is gone: half of a job, whose steps are as slow as that needs.
OUTAGE_S = float(os.environ.get("FAULTS_OUTAGE_S", "4"))
OUTAGE_STEPS = 80


@pytest.fixture
def cluster(on_sqlite: Cluster) -> Cluster:
    return on_sqlite


def test_f1_all_connections_to_redis_are_cut_while_jobs_train(cluster: Cluster) -> None:
    with cluster.watched() as audience:
        job_ids = [cluster.submit(args=SLOW) for _ in range(2)]
        for job_id in job_ids:
            audience.follow(job_id)
            cluster.wait_steps(job_id, 4)
        cut = 0
        for _ in range(8):
            cut += cluster.redis.client_kill_filter(_type="normal", skipme=True)
            cut += cluster.redis.client_kill_filter(_type="pubsub", skipme=True)
            cluster.wait_more_steps(job_ids[0], 4)
        assert cut >= 8 * len(NAMES), "the workers' own connections were among them"
    assert [cluster.outcomes(job_id) for job_id in job_ids] == [["succeeded"], ["succeeded"]]


def test_f2_f13_redis_is_killed_and_a_job_is_submitted_meanwhile(cluster: Cluster) -> None:
    with cluster.watched() as audience:
        running = cluster.submit(args=[str(OUTAGE_S / OUTAGE_STEPS)])
        audience.follow(running)
        body = cluster.body(args=SLOW)
        cluster.wait_steps(running, 8)
        cluster.redis_server.kill()
        submitted = cluster.post(body)
        cluster.wait_more_steps(running, OUTAGE_STEPS, timeout_s=60 + 2 * OUTAGE_S)
        cluster.redis_server.start()
        audience.follow(submitted)
    assert cluster.outcomes(running) == ["succeeded"], "the training went on"


def test_f13_redis_is_frozen_and_a_job_is_submitted_meanwhile(cluster: Cluster) -> None:
    with cluster.watched() as audience:
        running = cluster.submit(args=["0.08"])  # the submission may wait for Redis some seconds
        audience.follow(running)
        body = cluster.body()
        cluster.wait_steps(running, 8)
        cluster.redis_server.pause()
        try:
            submitted = cluster.post(body)
            cluster.wait_more_steps(running, 30)
        finally:
            cluster.redis_server.resume()
        audience.follow(submitted)
    assert cluster.outcomes(running) == ["succeeded"]


def test_f3_forty_doubled_messages_for_two_jobs(cluster: Cluster) -> None:
    poker = Poker(cluster.settings.broker_url.get_secret_value())
    with cluster.watched() as audience:
        job_ids = [cluster.submit() for _ in range(2)]
        for number in range(40):
            job_id = job_ids[number % 2]
            for host in NAMES:
                poker.poke(job_id, host)
            if number == 20:
                cluster.wait_steps(job_id, 4)
        for job_id in job_ids:
            audience.follow(job_id)
    poker.close()
    wait_until(lambda: not any(cluster.redis.llen(f"ec:{queue_of(host)}") for host in NAMES), "all hints taken")
    assert [cluster.outcomes(job_id) for job_id in job_ids] == [["succeeded"], ["succeeded"]]


def test_f4_a_hint_is_lost_with_the_worker_that_has_popped_it(cluster: Cluster) -> None:
    """Frozen, a worker's BRPOP still takes the message from Redis; killed, it has told nobody."""
    with cluster.watched() as audience:
        job_id, victim = _popped_by_a_frozen_worker(cluster)
        audience.follow(job_id)
        cluster.workers[victim].kill()
        for name, worker in cluster.workers.items():
            if name != victim:
                worker.thaw()
        assert cluster.job(job_id).attempt == 0, "nobody has heard of it"
        cluster.heal()
    assert cluster.outcomes(job_id) == ["succeeded"]


def _popped_by_a_frozen_worker(cluster: Cluster) -> tuple[int, str]:
    """A job and the host that holds its hint. A BRPOP lasts a second: a submission that misses it is tried again."""
    body = cluster.body()
    for _ in range(20):
        for worker in cluster.workers.values():
            worker.freeze()
        pushed = _pushes(cluster)
        job_id = cluster.post(body)
        wait_until(partial(_has_pushed, cluster, pushed), "the hint", timeout_s=20)
        placed_on = _placed_on(cluster, job_id)
        if cluster.redis.llen(f"ec:{queue_of(placed_on)}") == 0:
            return job_id, placed_on
        for worker in cluster.workers.values():
            worker.thaw()
        cluster.wait_ended([job_id])
    raise AssertionError("no frozen worker was inside its BRPOP")


def _has_pushed(cluster: Cluster, before: int) -> bool:
    return _pushes(cluster) > before


def _pushes(cluster: Cluster) -> int:
    """How many messages Redis has been given for queues."""
    return int(cluster.redis.info("commandstats").get("cmdstat_lpush", {"calls": 0})["calls"])


def _placed_on(cluster: Cluster, job_id: int) -> str:
    with cluster.database.read() as connection:
        return str(connection.execute(sa.select(placements.c.host).where(placements.c.job_id == job_id)).scalar_one())


def test_f12_redis_is_full(cluster: Cluster) -> None:
    with cluster.watched() as audience:
        running = cluster.submit(args=SLOW)
        audience.follow(running)
        body = cluster.body()
        cluster.wait_steps(running, 8)
        cluster.redis.config_set("maxmemory", "1mb")
        try:
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                cluster.redis.set("ec:probe", "x")
            submitted = cluster.post(body)
            cluster.wait_more_steps(running, 40)
        finally:
            cluster.redis.config_set("maxmemory", "0")
        audience.follow(submitted)
    assert cluster.outcomes(running) == ["succeeded"]


def test_f12_redis_comes_back_from_an_older_dump(cluster: Cluster) -> None:
    server: RedisServer = cluster.redis_server
    with cluster.watched() as audience:
        job_id, soon_over = cluster.submit(args=SLOW), cluster.submit(args=["0.005"])
        for each in (job_id, soon_over):
            audience.follow(each)
            cluster.wait_steps(each, 16)
        cluster.redis.save()
        saved = cluster.redis.xlen(f"ec:{{{job_id}}}:log")
        cluster.wait_ended([soon_over])  # the dump believes that it trains
        server.kill()
        server.start()
        (server.folder / "dump.rdb").unlink()  # the next restart is another test's
        assert saved > 0
        audience.follow(job_id)
    assert cluster.outcomes(job_id) == ["succeeded"]


def test_f17_redis_is_wiped_again_and_again(cluster: Cluster) -> None:
    with cluster.watched() as audience:
        job_id = cluster.submit(args=SLOW)
        audience.follow(job_id)
        for _ in range(4):
            cluster.wait_more_steps(job_id, 16)
            cluster.redis.flushall()
        audience.follow(job_id)
    assert cluster.outcomes(job_id) == ["succeeded"]
    snapshot = httpx2.get(f"{cluster.url}/api/v1/training-jobs/{job_id}", trust_env=False, timeout=30).json()
    assert (snapshot["status"], snapshot["progress"]) == ("succeeded", 1.0)
