"""F5-F8, F14-F16: processes are killed, frozen, ended or get another clock; jobs go on, and subscribers see it all."""

import os
import signal

import psutil
import pytest

from epochcast.jobs import Status
from tests.faults.cluster import NAMES, Cluster
from tests.faults.scripts import DEAF
from tests.faults.service import alive, names_of, wait_gone
from tests.waiting import wait_until
from worker.fork_server import READY as FORK_SERVER
from worker.process_tree import send

pytestmark = pytest.mark.postgres
SLOW = ["0.05"]


@pytest.fixture
def cluster(on_postgres: Cluster) -> Cluster:
    return on_postgres


def other(host: str) -> str:
    return next(name for name in NAMES if name != host)


def test_f5_a_killed_worker_leaves_no_process_and_its_job_goes_on_at_another(cluster: Cluster) -> None:
    with cluster.watched() as audience:
        job_id = cluster.submit(args=SLOW)
        audience.follow(job_id)
        cluster.wait_checkpoint(job_id)
        host = cluster.attempt_row(job_id).host
        names = set(names_of(cluster.workers[host].tree()).values())
        below = cluster.workers[host].kill()
        assert {"ec-launcher", "ec-trainer"} <= names
        wait_gone(below, "every process of the killed worker")
    first, second = cluster.queries.attempts(job_id)
    assert (first["outcome"], second["outcome"]) == ("lost", "succeeded")
    assert (first["host"], second["host"]) == (host, other(host))
    assert second["resumed_epoch"] >= 1


def test_f6_f7_f8_killed_and_frozen_past_the_lease_they_write_and_compute_nothing(cluster: Cluster) -> None:
    """All at once, because each waits for the same lease."""
    cluster.drain("host-b", True)
    killed, frozen = ("child", "launcher", "trainer"), ("supervisor", "whole")
    with cluster.watched() as audience:
        # Slow enough that none ends before the last of them has its checkpoint, on a busy machine too.
        job = {victim: cluster.submit(args=["0.1"], max_restarts=1) for victim in (*killed, *frozen, "none")}
        for job_id in job.values():
            audience.follow(job_id, kinds=("ws",))
            cluster.wait_checkpoint(job_id)
        rows = {victim: cluster.attempt_row(job_id) for victim, job_id in job.items()}
        trees = [pid for victim in killed for pid in cluster.tree(job[victim])]
        asleep = [rows["supervisor"].supervisor_pid, rows["whole"].supervisor_pid, *cluster.tree(job["whole"])]
        # F6
        victims = [rows["child"].supervisor_pid, rows["launcher"].launcher_pid, cluster.tree(job["trainer"])[1]]
        servers = fork_servers(cluster)
        for pid in (*victims, *servers):
            send(pid, signal.SIGKILL)  # one of them may have been a child that had not said yet what it is
        wait_gone(servers, "the fork servers, whose end wakes a frozen launcher")
        # F7: a supervisor alone. F8: supervisor, launcher and trainer.
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        wait_gone(
            trees, "the three killed attempts", timeout_s=10
        )  # a killed launcher's trainer is the agent's to find
        cluster.drain("host-b", False)
        cluster.drain("host-a", True)
        for victim in frozen:
            cluster.wait_steps(job[victim], 8, attempt=2)
        for pid in alive(asleep):
            os.kill(pid, signal.SIGCONT)
        cluster.drain("host-a", False)
    for victim in frozen:
        attempts = [(row["host"], row["outcome"]) for row in cluster.queries.attempts(job[victim])]
        assert attempts == [("host-a", "lost"), ("host-b", "succeeded")]
    assert cluster.outcomes(job["child"]) == ["lost", "succeeded"]
    assert cluster.outcomes(job["launcher"]) == ["lost", "succeeded"]
    assert cluster.outcomes(job["trainer"]) == ["failed", "succeeded"]
    assert cluster.outcomes(job["none"]) == ["succeeded"], "a fork server that is gone costs nothing that runs"


def test_a_worker_that_is_killed_while_its_launchers_are_frozen_leaves_no_process_either(cluster: Cluster) -> None:
    """F5 and F8 at once: no kill switch is left but the kernel. A deaf script reports nothing, and would go on."""
    cluster.drain("host-b", True)
    with cluster.watched() as audience:
        trains, deaf = cluster.submit(args=SLOW), cluster.submit(DEAF)
        # Not forked from the server: its launcher is the agent's own child.
        cold = cluster.submit(DEAF, env={"OMP_DISPLAY_ENV": "FALSE"})
        for job_id in (trains, deaf, cold):
            audience.follow(job_id, kinds=("ws",))
            cluster.wait_steps(job_id, 8)
        launchers = [cluster.attempt_row(job_id).launcher_pid for job_id in (trains, deaf, cold)]
        trees = [pid for job_id in (trains, deaf, cold) for pid in cluster.tree(job_id)]
        for pid in launchers:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: all(psutil.Process(pid).status() == "stopped" for pid in launchers), "their freezing")
        below = cluster.workers["host-a"].kill()
        wait_gone([*below, *trees], "the killed worker's processes, frozen launchers and their trainers")
        cluster.drain("host-b", False)
        for job_id in (deaf, cold):
            cluster.wait_steps(job_id, 8, attempt=2)
            cluster.stop(job_id)
    for job_id, end in ((trains, "succeeded"), (deaf, "stopped"), (cold, "stopped")):
        attempts = [(row["host"], row["outcome"]) for row in cluster.queries.attempts(job_id)]
        assert attempts == [("host-a", "lost"), ("host-b", end)]


def fork_servers(cluster: Cluster) -> list[int]:
    below = [pid for worker in cluster.workers.values() for pid in worker.tree()]
    found = [pid for pid, name in names_of(below).items() if name == FORK_SERVER]
    assert found, "no fork server to kill"
    return found


def test_f14_a_worker_that_is_shut_down_in_mid_epoch_hands_its_job_over(cluster: Cluster) -> None:
    with cluster.watched() as audience:
        job_id = cluster.submit(args=SLOW)
        audience.follow(job_id)
        cluster.wait_steps(job_id, 10)
        host = cluster.attempt_row(job_id).host
        assert cluster.workers[host].end() == 0
        assert cluster.job(job_id).status in (Status.QUEUED, Status.RUNNING, Status.SUCCEEDED)
    first, second = cluster.queries.attempts(job_id)
    assert (first["outcome"], second["outcome"]) == ("drained", "succeeded")
    assert (first["host"], second["host"]) == (host, other(host))
    assert second["resumed_epoch"] >= 1, "it has checkpointed"
    steps = [step.step for step in cluster.took_steps(job_id)]
    assert len(steps) - len(set(steps)) <= 4, "no more than the epoch under way was computed again"


def test_f16_the_gateway_is_killed_under_a_hundred_subscribers(cluster: Cluster) -> None:
    with cluster.watched() as audience:
        # Slow enough that neither ends before all hundred are there, on a busy machine too.
        job_ids = [cluster.submit(args=["0.2"]) for _ in range(2)]
        for job_id in job_ids:
            audience.follow(job_id, each=17)
        wait_until(lambda: all(joined.told for joined in audience.joined), "a message to each", timeout_s=60)
        hundred = list(audience.joined)
        cluster.gateway.kill()
        cluster.wait_more_steps(job_ids[0], 8)
        cluster.gateway.start()
    assert len(hundred) == 102
    assert all(joined.connections > 1 for joined in hundred)
    assert [cluster.outcomes(job_id) for job_id in job_ids] == [["succeeded"], ["succeeded"]]


def test_f15_a_gateway_whose_clock_is_an_hour_ahead_takes_no_job_away(cluster: Cluster) -> None:
    body = cluster.body(args=SLOW)
    cluster.gateway.kill()
    with cluster.gateway_with_clock(3600), cluster.watched() as audience:
        job_ids = [cluster.post(body) for _ in range(2)]
        for job_id in job_ids:
            audience.follow(job_id)
        cluster.wait_ended(job_ids)
        cluster.wait_heard_out(audience)
    assert [cluster.outcomes(job_id) for job_id in job_ids] == [["succeeded"]] * 2
