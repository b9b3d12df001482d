"""Two whole workers, Celery and all: jobs on both that compete for them, one killed in mid-job, both shut down."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from epochcast.jobs import Status, TrainingJobSpec
from shared.database import Database
from shared.fleet import Fleet
from shared.processes import dies_with_parent, end
from shared.queries import Queries
from shared.settings import Settings
from shared.store import Store
from tests.faults.checker import Checker
from tests.waiting import wait_until
from tests.worker.host import CHECKOUT, Host, environment
from tests.worker.test_bundles import keep
from worker.process_tree import start_time

# Short, but not so short that a busy machine loses a lease.
LEASES = {"lease_s": 40.0, "licence_s": 30.0, "kill_s": 3.0, "heartbeat_s": 1.0}
TRAIN = b"""
import sys, time
import torch
import torch.distributed as dist
import epochcast
run = epochcast.init()
dist.init_process_group("gloo")
done = {"epoch": 0}
run.state(done=done)
resumed = run.resume()
print("resumed" if resumed else "fresh", done["epoch"], flush=True)
for epoch in range(done["epoch"] + 1, run.total_epochs + 1):
    time.sleep(float(sys.argv[1]))
    dist.all_reduce(torch.ones(1))
    done["epoch"] = epoch
    if dist.get_rank() == 0:
        run.report(epoch=epoch, train_loss=1.0 / epoch)
        run.checkpoint()
dist.barrier()
dist.destroy_process_group()
"""


class Workers:
    """`python -m worker` under two names on one database, broker and artifact store."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.database = Database(settings.database_url.get_secret_value())
        self.store, self.queries = Store(self.database), Queries(self.database)
        self.processes = {name: self.start(name) for name in ("host-a", "host-b")}
        wait_until(self._both_ready, f"two ready hosts\n{self.output}", timeout_s=60)

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        own = {"EPOCHCAST_HOST_NAME": name, "EPOCHCAST_WORK_DIR": str(self.folder / name), "EPOCHCAST_SLOTS": "1"}
        with (self.folder / "output.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "worker"],
                cwd=CHECKOUT,
                env={**os.environ, **environment(self.settings), **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dies_with_parent(),
            )

    def _both_ready(self) -> bool:
        return [host["status"] for host in Fleet(self.database).hosts()] == ["ready", "ready"]

    def submit(self, bundle: str, pause_s: float, **fields: object) -> int:
        wanted = {"bundle": bundle, "entrypoint": "train.py", "name": "pair", "args": [str(pause_s)], **fields}
        spec = TrainingJobSpec.model_validate(wanted | {"resources": {"nodes": 2, "procs_per_node": 2}})
        return self.store.create(spec, "alice")[0].job_id

    def wait(self, job_id: int, status: Status, timeout_s: float = 120) -> None:
        what = f"job {job_id} being {status}\n{self.output[-6000:]}"
        wait_until(lambda: self.store.get(job_id).status is status, what, timeout_s=timeout_s)

    @property
    def output(self) -> str:
        return (self.folder / "output.log").read_text(errors="replace")

    def close(self) -> None:
        for process in self.processes.values():
            end(process, grace_s=60)
        self.database.close()


@pytest.fixture
def workers(sqlite_settings: Settings, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(Settings.model_validate({**sqlite_settings.model_dump(exclude_unset=True), **LEASES}), tmp_path)
    yield made
    made.close()
    Checker(made.settings, tmp_path / "steps").assert_whole()


@pytest.fixture
def bundle(workers: Workers, tmp_path: Path) -> str:
    host = Host(workers.settings, tmp_path)
    try:
        return keep(host, tmp_path / "bundle", {"train.py": TRAIN}).name
    finally:
        host.close()


def test_jobs_that_compete_for_both_hosts_are_all_trained(workers: Workers, bundle: str) -> None:
    ids = [workers.submit(bundle, 0.0, total_epochs=2) for _ in range(4)]
    for job_id in ids:
        workers.wait(job_id, Status.SUCCEEDED)
    assert [len(workers.queries.attempts(job_id)) for job_id in ids] == [1] * 4
    lasted = [(row["started_at"], row["ended_at"]) for job_id in ids for row in workers.queries.attempts(job_id)]
    assert all(before[1] <= after[0] for before, after in pairwise(lasted)), "one after the other"


def test_a_worker_killed_in_mid_job_comes_back_and_the_job_resumes_on_both(workers: Workers, bundle: str) -> None:
    job_id = workers.submit(bundle, 0.2, total_epochs=25)
    wait_until(lambda: workers.queries.artifacts(job_id), f"a checkpoint\n{workers.output[-6000:]}", timeout_s=90)
    tree = [process.pid for process in psutil.Process(workers.processes["host-b"].pid).children(recursive=True)]
    workers.processes["host-b"].send_signal(signal.SIGKILL)
    wait_until(lambda: all(start_time(pid) is None for pid in tree), "the end of all its processes", timeout_s=15)
    workers.processes["host-b"].wait()
    workers.processes["host-b"] = workers.start("host-b")
    workers.wait(job_id, Status.SUCCEEDED)
    attempts = workers.queries.attempts(job_id)
    assert [row["outcome"] for row in attempts] == ["lost", "succeeded"]
    assert attempts[1]["resumed_epoch"] >= 1
