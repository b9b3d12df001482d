"""A job sees the GPUs that it was placed on and no other, however it was started; a warm start is one on CUDA too."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from epochcast.events import Progress
from epochcast.jobs import TrainingJobSpec
from tests.waiting import wait_until
from tests.worker.host import Host
from tests.worker.test_bundles import keep, submit
from worker.gpus import Gpu, list_gpus

pytestmark = pytest.mark.gpu

LOOK = b"""
import json, os, torch
how = "cold" if b"worker.trainer" in open("/proc/self/cmdline", "rb").read() else "warm"
names = [f"GPU-{torch.cuda.get_device_properties(n).uuid}" for n in range(torch.cuda.device_count())]
print(json.dumps([how, os.environ["CUDA_VISIBLE_DEVICES"], names]))
"""
TRAIN = b"""
import epochcast, torch
run = epochcast.init()
model = torch.nn.Linear(64, 64).cuda()
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for epoch in run.epochs():
    loss = model(torch.ones(8, 64, device="cuda")).square().mean()
    loss.backward()
    optimizer.step()
    run.report(epoch=epoch, train_loss=loss)
print("cold" if b"worker.trainer" in open("/proc/self/cmdline", "rb").read() else "warm")
"""
# A variable that is read when torch is loaded: such a job is never forked.
COLD = {"OMP_PROC_BIND": "false"}


@pytest.mark.parametrize("env", [{}, COLD], ids=["warm", "cold"])
def test_a_job_sees_only_the_gpus_it_was_placed_on(
    gpu_host: Callable[..., Host], tmp_path: Path, env: dict[str, str]
) -> None:
    host = gpu_host("--warm")
    content = keep(host, tmp_path / "code", {"train.py": LOOK})
    known = {gpu.uuid for gpu in list_gpus()}
    for count in (1, 0):
        job_id = submit(host, content, env=env, resources={"gpus": count})
        host.wait_ended(host.attempt(job_id))
        [line] = host.logs(job_id)
        how, visible, seen = json.loads(line)
        assert how == ("cold" if env else "warm")
        assert visible.split(",") == (seen if count else [""])
        assert len(seen) == count
        assert set(seen) <= known


def test_every_placed_gpu_has_a_process_of_its_own(gpu_host: Callable[..., Host], tmp_path: Path) -> None:
    host = gpu_host("--warm")
    content = keep(host, tmp_path / "code", {"train.py": LOOK})
    jobs = [host.store.create(_spec(content.name), "alice")[0].job_id for _ in range(len(list_gpus()) + 1)]
    for job_id in jobs[:-1]:
        host.wait_placed(job_id)
    wait_until(lambda: host.store.get(jobs[-1]).pending_reason, "why the last one waits", timeout_s=20)
    seen = []
    for job_id in jobs:
        host.wait_placed(job_id)
        host.wait_ended(host.attempt(job_id))
        seen += json.loads(host.logs(job_id)[0])[2]
    assert len(set(seen[:-1])) == len(list_gpus())


def _spec(bundle: str) -> TrainingJobSpec:
    fields = {"bundle": bundle, "entrypoint": "train.py", "resources": {"gpus": 1}, "name": "own", "total_epochs": 1}
    return TrainingJobSpec.model_validate(fields)


def test_a_warm_start_trains_on_the_gpu_as_a_cold_one_does(
    gpu_host: Callable[..., Host], gpu: Gpu, tmp_path: Path
) -> None:
    host = gpu_host("--warm")
    content = keep(host, tmp_path / "code", {"train.py": TRAIN})
    losses: dict[str, list[float | None]] = {}
    for env in ({}, COLD, {}, COLD):
        job_id = submit(host, content, env=env, resources={"gpus": 1}, total_epochs=3)
        began = time.time()
        host.wait_ended(host.attempt(job_id))
        how = host.logs(job_id)[-1]
        assert how == ("cold" if env else "warm")
        epochs = [m for m in host.messages(job_id) if isinstance(m, Progress) and m.current_epoch]
        losses.setdefault(how, []).extend(message.current_loss for message in epochs)
        with host.database.read() as connection:
            reported = connection.exec_driver_sql(
                f"SELECT min(recorded_at) FROM metric_points WHERE job_id = {job_id}"
            ).scalar_one()
        print(f"{how}: first report {reported - began:.2f} s after the supervisor was started")
    assert losses["warm"] == losses["cold"]
