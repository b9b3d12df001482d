"""F9, F15: SQL goes away, for less than the licence or more than the lease; is locked; hears of a wrong clock."""

import sqlite3
import time

import pytest

from tests.faults.checker import broken_story, overlaps_of_steps, unended
from tests.faults.cluster import LEASES, Cluster
from tests.faults.record import Reader
from tests.faults.service import wait_gone
from tests.postgres import PostgresServer
from tests.waiting import wait_until

SLOW = ["0.05"]


@pytest.mark.postgres
def test_f9_an_outage_shorter_than_the_licence_interrupts_nothing(
    on_postgres: Cluster, postgres_server: PostgresServer
) -> None:
    cluster = on_postgres
    with cluster.watched() as audience:
        job_id = cluster.submit(args=SLOW)
        audience.follow(job_id)
        cluster.wait_steps(job_id, 8)
        postgres_server.kill()
        try:
            cluster.wait_more_steps(job_id, 20)  # the server takes some seconds to start, and the licence is short
        finally:
            postgres_server.start()
    assert cluster.outcomes(job_id) == ["succeeded"]


@pytest.mark.postgres
def test_f9_an_outage_longer_than_the_lease_ends_the_training_before_anybody_else_may_start(
    on_postgres: Cluster, postgres_server: PostgresServer
) -> None:
    cluster = on_postgres
    with cluster.watched() as audience:
        job_id = cluster.submit(args=SLOW)
        audience.follow(job_id)
        cluster.wait_checkpoint(job_id)
        tree = cluster.tree(job_id)
        postgres_server.kill()
        gone_at = time.monotonic()
        try:
            limit_s = LEASES["licence_s"] + LEASES["kill_s"]
            wait_gone(tree, "the trainer, whose licence nobody renews", timeout_s=limit_s + 1)
            wait_until(lambda: time.monotonic() - gone_at > LEASES["lease_s"], "the lease's end", timeout_s=30)
        finally:
            postgres_server.start()
    assert cluster.outcomes(job_id) == ["lost", "succeeded"]


def test_f9_a_locked_sqlite_interrupts_nothing_for_as_long_as_the_licence(on_sqlite: Cluster) -> None:
    cluster = on_sqlite
    with cluster.watched() as audience:
        job_id = cluster.submit(args=SLOW)
        audience.follow(job_id)
        cluster.wait_steps(job_id, 8)
        url = cluster.settings.database_url.get_secret_value()
        other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=10)
        other.execute("BEGIN IMMEDIATE")
        try:
            cluster.wait_more_steps(job_id, 50)
        finally:
            other.execute("ROLLBACK")
            other.close()
    assert cluster.outcomes(job_id) == ["succeeded"]


def test_f15_on_sqlite_a_wrong_clock_may_take_a_job_back_but_never_starts_it_beside_itself(on_sqlite: Cluster) -> None:
    cluster = on_sqlite
    # SQLite has the clock of whoever asks, and is for one machine with one worker.
    cluster.drain("host-b", True)
    before = cluster.checker.job_ids()
    job_id = cluster.submit(args=["0.2"])  # still on its way when the other gateway has started
    cluster.wait_steps(job_id, 8)
    cluster.gateway.kill()
    with cluster.gateway_with_clock(3600):
        wait_until(lambda: cluster.job(job_id).generation > 2, "the wrong dispatcher's deed", timeout_s=60)
    cluster.heal()
    cluster.wait_ended([job_id])
    [record] = Reader(cluster.settings).jobs([job_id])
    assert [*overlaps_of_steps(cluster.took_steps(job_id), job_id), *broken_story(record), *unended(record)] == []
    assert set(cluster.checker.job_ids()) - set(before) == {job_id}
