"""Attempts on two hosts: all members together or none, one story, one to blame, and nothing left of any of them."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from epochcast.jobs import Status
from shared.recovery import AVOID_S, Recovery
from shared.tables import member_messages
from tests.waiting import wait_until
from tests.worker.conftest import HASTY
from tests.worker.host import Host, assert_gapless
from tests.worker.pair import Pair, alive
from tests.worker.test_ranks import DDP, ENDLESS
from tests.worker.test_recovery import freeze_between_writes
from worker.process_tree import descendants

pytestmark = pytest.mark.checked

# Trains in step on all ranks, agrees on when to stop, and writes down what it did when.
STEADY = """
    import os, time
    import torch
    import torch.distributed as dist
    import epochcast
    from worker.leaving import leave
    run = epochcast.init()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    done = {"epoch": 0}
    run.state(done=done)
    resumed = run.resume()
    print("resumed" if resumed else "fresh", done["epoch"], flush=True)
    for epoch in range(done["epoch"] + 1, run.total_epochs + 1):
        time.sleep(0.2)
        with open(STEPS, "a") as file:
            file.write(f"{os.environ['TORCHELASTIC_RUN_ID']} {rank} {epoch}\\n")
        stopping = torch.tensor(float(run.stopping))
        dist.all_reduce(stopping)
        done["epoch"] = epoch
        if rank == 0:
            run.report(epoch=epoch, train_loss=1.0 / epoch)
            run.checkpoint()
        if stopping:
            break
    dist.barrier()
    dist.destroy_process_group()
    run.close()
    leave(0, os.getcwd())  # as the trainer ends: with torch 2.13 a thread of gloo may abort Python's own way out
"""


@pytest.fixture
def pair(make_host: Callable[..., Host], tmp_path: Path) -> Pair:
    return Pair(make_host, tmp_path)


@pytest.fixture
def hasty(make_host: Callable[..., Host], tmp_path: Path) -> Pair:
    return Pair(make_host, tmp_path, **HASTY)


@pytest.fixture
def steady(tmp_path: Path) -> str:
    return STEADY.replace("STEPS", repr(str(tmp_path / "steps")))


def assert_attempts_follow_each_other(folder: Path) -> None:
    """I1: no rank of an attempt computes once one of the next has begun."""
    runs = [line.split()[0] for line in (folder / "steps").read_text().splitlines()]
    generations = [int(run.rsplit("-", 1)[1]) for run in runs]
    assert generations == sorted(generations)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_ordinary_ddp_script_trains_on_two_hosts(pair: Pair, processes: int) -> None:
    job = pair.run(DDP, total_epochs=3, procs_per_node=processes)
    assert (job.status, job.error_message, job.current_epoch) == (Status.SUCCEEDED, None, 3), pair.output
    world = 2 * processes
    said = {line for line in pair.logs(job.job_id) if "local" in line}
    others = {f"[rank {rank}] rank {rank} of {world}, local {rank % processes}" for rank in range(1, world)}
    assert said == {f"rank 0 of {world}, local 0"} | others
    assert_gapless(pair.first.entries(job.job_id))
    [attempt] = pair.queries.attempts(job.job_id)
    assert [(one["host"], one["outcome"]) for one in attempt["members"]] == [
        ("host-a", "succeeded"),
        ("host-b", "succeeded"),
    ]
    kept = [row["key"].rsplit("/", 1)[1] for row in pair.queries.artifacts(job.job_id) if row["kind"] == "log"]
    assert set(kept) == {"0001.log", *(f"0001-rank-{rank}.log" for rank in range(1, world))}
    with pair.first.database.read() as connection:
        assert connection.execute(sa.select(member_messages)).all() == []
    assert job.hosts == []


@pytest.mark.parametrize("victim", ["supervisor-1", "launcher-1", "rank-1", "supervisor-0", "launcher-0"])
def test_one_lost_member_ends_the_attempt_for_all_and_the_job_resumes(
    hasty: Pair, steady: str, tmp_path: Path, victim: str
) -> None:
    job_id = hasty.submit(total_epochs=20, max_restarts=1)
    supervisors = hasty.start(job_id, steady)
    hasty.wait_epoch(job_id, 3)
    hasty.wait_checkpoint(job_id)
    trees = hasty.trees(job_id)
    kind, _, member = victim.partition("-")
    launcher = hasty.launcher(job_id, int(member))
    pid = {"supervisor": supervisors[int(member)].pid, "launcher": launcher, "rank": descendants(launcher)[0]}[kind]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(trees), f"the end of every process\n{hasty.output}", timeout_s=20)
    hasty.wait_ended(supervisors)
    hasty.wait_status(job_id, Status.QUEUED)
    hasty.wait_ended(hasty.start(job_id, steady))
    job = hasty.store.get(job_id)
    assert (job.status, job.error_message, job.attempt, job.current_epoch) == (Status.SUCCEEDED, None, 2, 20)
    logs = hasty.logs(job_id)
    assert any(line.startswith("resumed") for line in logs)
    assert any(line.startswith("[rank 1] resumed") for line in logs), "from the same checkpoint"
    assert_attempts_follow_each_other(tmp_path)
    assert_gapless(hasty.first.entries(job_id))
    charged = victim == "rank-1"
    assert [row["outcome"] for row in hasty.queries.attempts(job_id)] == ["failed" if charged else "lost", "succeeded"]


def test_a_killed_agent_changes_nothing_for_a_member(hasty: Pair, steady: str) -> None:
    job_id = hasty.submit(total_epochs=1000)
    supervisors = hasty.start(job_id, steady)
    hasty.wait_epoch(job_id, 2)
    agent = hasty.placed(job_id)[1].agent
    assert agent is not None
    agent.kill()
    agent.wait()
    hasty.wait_epoch(job_id, hasty.store.get(job_id).current_epoch + 3)
    hasty.placed(job_id)[1].start_agent()
    hasty.store.request_stop(job_id)
    hasty.wait_ended(supervisors)
    assert hasty.store.get(job_id).status is Status.STOPPED


def test_a_member_frozen_past_its_lease_ends_the_attempt_and_writes_nothing_when_it_wakes(
    hasty: Pair, steady: str, tmp_path: Path
) -> None:
    job_id = hasty.submit(total_epochs=25)
    zero, one = hasty.start(job_id, steady)
    hasty.wait_epoch(job_id, 2)
    trees = hasty.trees(job_id)
    freeze_between_writes(hasty.first, one)
    hasty.wait_ended([zero])
    assert alive(trees) == [], "its launcher ended them by its own licence"
    assert hasty.queries.attempts(job_id)[0]["members"][1]["outcome"] == "lost"
    hasty.wait_status(job_id, Status.QUEUED)
    again = hasty.start(job_id, steady)
    hasty.wait_status(job_id, Status.RUNNING)
    one.send_signal(signal.SIGCONT)
    hasty.wait_ended([one, *again])
    job = hasty.store.get(job_id)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 2)
    assert [row["outcome"] for row in hasty.queries.attempts(job_id)[1]["members"]] == ["succeeded", "succeeded"]
    assert_attempts_follow_each_other(tmp_path)
    assert_gapless(hasty.first.entries(job_id))


def test_a_stop_reaches_the_ranks_on_all_hosts(pair: Pair, steady: str) -> None:
    job_id = pair.submit(total_epochs=1000)
    supervisors = pair.start(job_id, steady)
    pair.wait_epoch(job_id, 2)
    pair.store.request_stop(job_id)
    for host in pair.hosts.values():
        host.redis.publish(f"ec:host:{host.settings.host_name}:nudge", str(job_id))
    pair.wait_ended(supervisors)
    assert pair.store.get(job_id).status is Status.STOPPED
    [attempt] = pair.queries.attempts(job_id)
    assert [one["outcome"] for one in attempt["members"]] == ["stopped", "stopped"]


@pytest.mark.parametrize("member", [0, 1])
def test_a_worker_that_shuts_down_drains_the_whole_attempt(pair: Pair, steady: str, member: int) -> None:
    job_id = pair.submit(total_epochs=1000)
    supervisors = pair.start(job_id, steady)
    pair.wait_epoch(job_id, 2)
    agent = pair.placed(job_id)[member].agent
    assert agent is not None
    agent.send_signal(signal.SIGTERM)
    pair.wait_ended(supervisors)
    job = pair.store.get(job_id)
    assert (job.status, job.spec.max_restarts) == (Status.QUEUED, 0), "uncharged"
    [attempt] = pair.queries.attempts(job_id)
    assert (attempt["outcome"], [one["outcome"] for one in attempt["members"]]) == ("drained", ["drained"] * 2)
    assert pair.queries.artifacts(job_id), "it has checkpointed"


FAILING = """
    import time
    import torch
    import torch.distributed as dist
    dist.init_process_group("gloo")
    dist.all_reduce(torch.ones(1))
    if dist.get_rank() == FAILING_RANK:
        raise ValueError("bad shard")
    dist.all_reduce(torch.ones(1))
"""


@pytest.mark.parametrize("rank", [1, 3])
def test_the_rank_that_failed_first_is_named_with_its_host(pair: Pair, rank: int, tmp_path: Path) -> None:
    path = tmp_path / "failing.py"
    path.write_text("\n".join(line[4:] for line in FAILING.splitlines()).replace("FAILING_RANK", str(rank)))
    script = f"""
    import sys
    from pathlib import Path
    from worker import trainer
    trainer.script_of = lambda recipe: Path({str(path)!r})
    sys.exit(trainer.main())
    """
    job = pair.run(script, procs_per_node=2)
    assert (job.status, job.error_message) == (Status.FAILED, "ValueError: bad shard"), pair.logs(job.job_id)
    assert job.error is not None
    hosts = [one["host"] for one in pair.queries.attempts(job.job_id)[0]["members"]]
    assert (job.error.rank, job.error.host) == (rank, hosts[rank // 2])


def test_a_member_that_never_starts_releases_all_and_another_host_is_used(pair: Pair, steady: str) -> None:
    job_id = pair.submit(total_epochs=2)
    present, absent = pair.placed(job_id)
    waiting = present.attempt(job_id, steady)
    wait_until(lambda: "waiting for the other hosts" in pair.output, "the claimed place", timeout_s=30)
    pair.hosts["host-c"] = pair.add("host-c")

    def released() -> bool:
        generation = pair.store.get(job_id).generation
        return Recovery(pair.first.database).release_placement(job_id, generation, absent.settings.host_name, AVOID_S)

    assert released(), "what the dispatcher does after 120 s"
    pair.wait_ended([waiting], timeout_s=20)
    hosts = pair.placed(job_id)
    assert absent not in hosts
    pair.wait_ended([host.attempt(job_id, steady) for host in hosts])
    job = pair.store.get(job_id)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1), "nothing of it was charged"


def test_a_new_worker_ends_its_predecessors_member_at_once(pair: Pair, steady: str) -> None:
    job_id = pair.submit(total_epochs=1000)
    zero, one = pair.start(job_id, steady)
    pair.wait_epoch(job_id, 2)
    host = pair.placed(job_id)[1]
    trees = pair.trees(job_id)
    assert host.agent is not None
    host.agent.kill()
    host.agent.wait()
    one.kill()
    one.wait()
    host.start_agent("--first")
    pair.wait_ended([zero], timeout_s=40)
    assert alive(trees) == []
    [attempt] = pair.queries.attempts(job_id)
    assert attempt["reason"] == f"host {host.settings.host_name} was lost: its worker was gone"
    assert pair.store.get(job_id).status is Status.QUEUED, "without waiting for a lease of 120 s"


def test_a_new_worker_frees_the_place_that_its_predecessor_held_while_it_waited(pair: Pair, steady: str) -> None:
    job_id = pair.submit(total_epochs=2)
    zero, one = pair.placed(job_id)
    waiting = one.attempt(job_id, steady)
    wait_until(lambda: "waiting for the other hosts" in pair.output, "the claimed place", timeout_s=30)
    assert one.agent is not None
    one.agent.kill()
    one.agent.wait()
    waiting.kill()
    waiting.wait()
    one.start_agent("--first")
    pair.wait_ended([host.attempt(job_id, steady) for host in (zero, one)])
    assert pair.store.get(job_id).status is Status.SUCCEEDED


@pytest.mark.parametrize("processes", [1, 2])
def test_a_taken_port_is_the_platforms_fault(pair: Pair, processes: int) -> None:
    script = """
        import os, socket
        import torch.distributed as dist
        from epochcast.reporting import AttemptSocket
        taken = socket.socket()
        if os.environ["RANK"] == "0":
            taken.bind((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
            taken.listen()
        try:
            dist.init_process_group("gloo")
        except Exception as error:
            failed = {"type": "user_error", "message": f"{type(error).__name__}: {error}"}
            told = {"type": "failure", "rank": int(os.environ["RANK"]), "error": failed}
            AttemptSocket(os.environ["EPOCHCAST_SOCKET"]).send(told)
            raise
    """
    job = pair.run(script, total_epochs=1, procs_per_node=processes)
    assert job.status is Status.QUEUED
    [attempt] = pair.queries.attempts(job.job_id)
    assert attempt["outcome"] == "lost"
    assert "was taken before rank 0 could listen there" in (attempt["reason"] or "")


def test_no_rank_outlives_its_supervisor_on_either_host(pair: Pair) -> None:
    job_id = pair.submit(procs_per_node=2)
    supervisors = pair.start(job_id, ENDLESS)
    pair.wait_logged(job_id, "[rank 3] met")
    trees = pair.trees(job_id)
    assert len(trees) >= 6
    for supervisor in supervisors:
        supervisor.kill()
    wait_until(lambda: not alive(trees), "the end of every process", timeout_s=20)


def test_a_stall_tells_what_the_ranks_of_every_host_do(pair: Pair, tmp_path: Path) -> None:
    # The trainer itself, because it is what prepares a process to answer.
    script = """
    import sys
    from pathlib import Path
    from worker import trainer
    trainer.script_of = lambda recipe: Path({path!r})
    sys.exit(trainer.main())
    """
    path = tmp_path / "silent.py"
    path.write_text("import time\ndef silent():\n    time.sleep(600)\nsilent()\n")
    job_id = pair.submit(stall_timeout_s=30.0)  # both scripts are there by then
    pair.wait_ended(pair.start(job_id, script.format(path=str(path))))
    job = pair.store.get(job_id)
    assert (job.status, job.error and job.error.type) == (Status.FAILED, "stalled"), pair.output
    logs = pair.logs(job_id)
    for rank in (0, 1):
        assert any(line.startswith(f"rank {rank}, pid ") for line in logs), logs
    assert sum("in silent" in line for line in logs) >= 2
