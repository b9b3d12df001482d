"""Several processes of one attempt on one host: torchrun's variables, one story, one kill switch, one to blame."""

import os
import signal
import textwrap

import pytest

from epochcast.jobs import Status
from tests.waiting import wait_until
from tests.worker.host import Host, assert_gapless
from worker.process_tree import start_time
from worker.ranks import Ranks, free_port

pytestmark = pytest.mark.checked

DDP = """
import os
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import epochcast
from worker.leaving import leave

run = epochcast.init()
dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
print(f"rank {dist.get_rank()} of {dist.get_world_size()}, local {os.environ['LOCAL_RANK']}", flush=True)
for epoch in run.epochs():
    for step in range(3):
        x = torch.full((8, 4), float(dist.get_rank() + 1))
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    run.report(epoch=epoch, train_loss=loss.detach(), rank=dist.get_rank())
weights = [None] * dist.get_world_size()
dist.all_gather_object(weights, model.module.weight.tolist())
assert all(other == weights[0] for other in weights), weights
run.save_model(model)
dist.destroy_process_group()
run.close()
leave(0, os.getcwd())  # as the trainer ends: with torch 2.13 a thread of gloo may abort Python's own way out
"""
ENDLESS = """
import os, sys, time
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
print("met", flush=True)
while True:
    dist.all_reduce(torch.ones(1))
    time.sleep(0.05)
"""


@pytest.mark.parametrize("processes", [2, 4])
def test_a_script_for_torchrun_trains_on_several_processes(host: Host, processes: int) -> None:
    job = host.run(DDP, total_epochs=3, procs_per_node=processes)
    assert (job.status, job.error_message, job.current_epoch) == (Status.SUCCEEDED, None, 3), host.logs(job.job_id)
    said = {line for line in host.logs(job.job_id) if "local" in line}
    others = {f"[rank {rank}] rank {rank} of {processes}, local {rank}" for rank in range(1, processes)}
    assert said == {f"rank 0 of {processes}, local 0"} | others
    assert host.queries.metrics(job.job_id)["rank"] == [0, 0, 0], "only rank 0's reports count"
    assert job.model_id is not None
    assert_gapless(host.entries(job.job_id))
    logs = [one for one in host.queries.artifacts(job.job_id) if one["kind"] == "log"]
    assert len(logs) == processes


def test_a_single_process_is_told_nothing_unless_the_job_asks_for_it(host: Host) -> None:
    script = "import os; print(os.environ.get('RANK'), os.environ.get('WORLD_SIZE'), os.environ.get('MASTER_ADDR'))"
    assert host.logs(host.run(script).job_id) == ["None None None"]
    assert host.logs(host.run(script, procs_per_node=1).job_id) == ["0 1 127.0.0.1"]


def failing(what: str) -> str:
    return ENDLESS.replace("while True:", f"if os.environ['RANK'] == '1': time.sleep(0.5); {what}\nwhile True:")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("os.kill(os.getpid(), 9)", "the script was killed by SIGKILL"),
        ("os._exit(7)", "the script exited with code 7"),
    ],
)
def test_the_rank_that_failed_first_is_named_and_the_others_end(host: Host, what: str, message: str) -> None:
    job = host.run(failing(what), procs_per_node=3)
    assert (job.status, job.error_message) == (Status.FAILED, message)
    assert job.error is not None
    assert (job.error.rank, job.error.host) == (1, host.settings.host_name)


def test_an_exception_of_one_rank_is_told_with_its_rank_and_what_it_caused_is_not_the_reason(host: Host) -> None:
    script = """
    import sys
    from pathlib import Path
    from worker import trainer
    trainer.script_of = lambda recipe: Path({path!r})
    sys.exit(trainer.main())
    """
    path = host.settings.work_dir / "script.py"
    path.write_text(failing("raise ValueError('bad shard')"))
    job = host.run(textwrap.dedent(script).format(path=str(path)), procs_per_node=2)
    assert (job.status, job.error_message) == (Status.FAILED, "ValueError: bad shard")
    assert job.error is not None
    assert job.error.rank == 1
    assert "script.py" in (job.error.traceback or "")


def test_a_stop_reaches_every_rank(host: Host) -> None:
    job_id = host.submit(procs_per_node=2)
    attempt = host.attempt(job_id, ENDLESS)
    host.wait_logged(job_id, "met")
    host.store.request_stop(job_id)
    host.wait_ended(attempt)
    assert host.store.get(job_id).status is Status.STOPPED


@pytest.mark.parametrize("victim", ["supervisor", "launcher"])
def test_no_rank_outlives_its_supervisor_or_its_launcher(host: Host, victim: str) -> None:
    job_id = host.submit(procs_per_node=2)
    attempt = host.attempt(job_id, ENDLESS)
    host.wait_logged(job_id, "met")
    host.wait_logged(job_id, "[rank 1] met")
    tree = host.tree(job_id)
    assert len(tree) >= 3
    os.kill(attempt.pid if victim == "supervisor" else tree[0], signal.SIGKILL)
    wait_until(lambda: all(start_time(pid) is None for pid in tree), "the end of every process", timeout_s=20)
    host.wait_ended(attempt)
    if victim == "launcher":  # its supervisor has seen it, and gives the job back at once
        assert host.store.get(job_id).status is Status.QUEUED


def test_ranks_are_numbered_over_the_hosts() -> None:
    second = Ranks(local=4, node=1, nodes=2, ranked=True).meeting_at("10.0.0.1", 20_001)
    assert (second.first, second.world, list(second.here)) == (4, 8, [4, 5, 6, 7])
    told = second.environment("run")
    assert (told["WORLD_SIZE"], told["GROUP_RANK"], told["MASTER_ADDR"]) == ("8", "1", "10.0.0.1")
    assert "GLOO_SOCKET_IFNAME" not in told


def test_the_ranks_meet_at_a_port_that_no_outgoing_connection_takes() -> None:
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        lowest = int(file.read().split()[0])
    assert all(1024 <= free_port() < lowest for _ in range(20))
