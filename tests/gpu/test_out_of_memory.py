"""Real CUDA out-of-memory errors: exact message, the device's numbers, the snapshot, and memory for the next job."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.artifacts import ArtifactStore
from tests.gpu.conftest import wait_free
from tests.listening import listening
from tests.waiting import wait_until
from tests.worker.host import Host
from tests.worker.test_bundles import keep, run
from worker.gpus import Gpu

pytestmark = pytest.mark.gpu

GREEDY = b"""
import epochcast, torch
run = epochcast.init()
run.record_memory()
held = []
for epoch in run.epochs():
    for batch in run.batches(range(1_000_000)):
        held.append(torch.empty(2**30, dtype=torch.uint8, device="cuda"))
"""
MODEST = b"""
import torch
free, total = torch.cuda.mem_get_info()
held = torch.empty(int(0.9 * total), dtype=torch.uint8, device="cuda")
held.fill_(1)
torch.cuda.synchronize()
print("nine tenths are mine")
"""


def test_an_oom_is_told_with_its_numbers_and_the_next_job_gets_nine_tenths(
    gpu_host: Callable[..., Host], gpu: Gpu, tmp_path: Path
) -> None:
    host = gpu_host()
    resources = {"gpus": 1}
    job = run(host, keep(host, tmp_path / "greedy", {"train.py": GREEDY}), resources=resources)
    assert (job.status, job.error_message) == ("failed", "CUDA out of memory")
    error = job.error
    assert error is not None
    assert error.memory is not None
    assert (error.type, error.gpu, error.rank, error.epoch) == ("cuda_oom", gpu.name, 0, 1)
    total_gib = gpu.total_bytes / 2**30
    memory = error.memory
    assert memory.requested_gib == 1.0
    assert memory.total_gib == pytest.approx(total_gib, rel=0.05)
    assert memory.free_gib is not None
    assert memory.free_gib < 1.0
    assert memory.allocated_gib == pytest.approx(total_gib, abs=max(3.0, 0.05 * total_gib))
    assert error.step == pytest.approx((memory.allocated_gib or 0) + 1, abs=1)
    assert memory.others_gib is not None
    assert memory.others_gib < 1.0, "nobody else is there, and the job isn't taken for somebody else"
    assert error.verdict is not None
    assert "in <module>" in (error.traceback or "")
    [kept] = [row for row in host.queries.artifacts(job.job_id) if row["kind"] == "oom_snapshot"]
    ArtifactStore(host.settings.artifacts_url).get(kept["key"], tmp_path / "snapshot")
    assert "oom" in actions(tmp_path / "snapshot")

    following = run(host, keep(host, tmp_path / "modest", {"train.py": MODEST}), resources=resources)
    assert (following.status, host.logs(following.job_id)) == ("succeeded", ["nine tenths are mine"])


def actions(snapshot: Path) -> set[str]:
    content = pickle.loads(snapshot.read_bytes())
    return {entry["action"] for trace in content["device_traces"] for entry in trace}


def failure_of(tmp_path: Path, script: str, **params: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a trainer says whose script is this, and all its packets."""
    path = tmp_path / "train.py"
    path.write_text(script)
    with listening(tmp_path / "attempt", script=str(path), params=params) as attempt:
        code, output = attempt.train()
        assert code == 1, output
        attempt.settle()
        for told in attempt.said("oom_snapshot"):
            assert "oom" in actions(attempt.out / told["file"])
    [failure] = attempt.said("failure")
    return failure["error"], attempt.packets


BACKWARD = """
import torch
class Large(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x
    @staticmethod
    def backward(ctx, grad):
        return torch.empty(2**50, dtype=torch.uint8, device="cuda")
Large.apply(torch.ones(1, device="cuda", requires_grad=True)).backward()
"""
COMPILED = """
import torch
@torch.compile
def outer(x):
    return (x[:, None] * x[None, :]).cos()
outer(torch.ones(2**25, device="cuda"))
"""
WRAPPED = """
import torch
def step():
    torch.empty(2**50, dtype=torch.uint8, device="cuda")
try:
    step()
except RuntimeError as error:
    raise ValueError("step 7 failed") from error
"""


@pytest.mark.parametrize("script", [BACKWARD, COMPILED, WRAPPED], ids=["backward", "compiled", "wrapped"])
def test_an_oom_is_one_wherever_it_is_raised(gpu: Gpu, tmp_path: Path, script: str) -> None:
    error, _ = failure_of(tmp_path, script, batch_size=64)
    assert (error["type"], error["message"], error["gpu"]) == ("cuda_oom", "CUDA out of memory", gpu.name)
    assert error["memory"]["requested_gib"] > gpu.total_bytes / 2**30
    assert error["memory"]["total_gib"] == pytest.approx(gpu.total_bytes / 2**30, rel=0.05)
    assert "try batch_size <= " in error["verdict"]


HOLDER = """
import torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - 3 * 2**29, dtype=torch.uint8, device="cuda")
print("holding", flush=True)
input()
"""


def test_memory_that_somebody_else_holds_is_named(gpu: Gpu, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        error, _ = failure_of(tmp_path, "import torch\ntorch.empty(2**31, dtype=torch.uint8, device='cuda')")
        holder.communicate("\n")
    assert error["memory"]["others_gib"] == pytest.approx(gpu.total_bytes / 2**30, abs=3)
    assert "this would fit if the GPU were free" in error["verdict"]
    assert "held by other processes" in error["verdict"]


UNBOUNDED = """
import torch
torch.cuda.memory._record_memory_history()
for _ in range(1000):
    torch.ones(1000, device="cuda") * 2
torch.empty(2**50, dtype=torch.uint8, device="cuda")
"""


@pytest.mark.parametrize("starts", ["torch.cuda.memory._record_memory_history()", ""], ids=["recorded", "not"])
def test_a_snapshot_is_left_only_where_the_script_recorded(gpu: Gpu, tmp_path: Path, starts: str) -> None:
    script = UNBOUNDED.replace("torch.cuda.memory._record_memory_history()", starts)
    _, packets = failure_of(tmp_path, script)
    assert [packet["type"] for packet in packets] == ["failure", "oom_snapshot"][: 2 if starts else 1]


HANGING = b"""
import torch
free, total = torch.cuda.mem_get_info()
held = torch.empty(int(0.6 * total), dtype=torch.uint8, device="cuda")
print("computing", flush=True)
torch.cuda._sleep(10**13)                          # some hours
torch.cuda.synchronize()
"""


def test_memory_is_free_again_after_a_kill_inside_a_kernel(
    gpu_host: Callable[..., Host], gpu: Gpu, tmp_path: Path
) -> None:
    host = gpu_host()
    resources = {"gpus": 1, "gpu_memory_gib": 0.9 * gpu.total_bytes / 2**30}
    content = keep(host, tmp_path / "hanging", {"train.py": HANGING})
    job = run(host, content, resources=resources, max_runtime_s=20.0)
    assert "computing" in host.logs(job.job_id)
    assert job.error is not None
    assert job.error.type == "timeout"
    # Placed with nine tenths free: it starts only once the driver has given the dead process's memory back.
    following = run(host, keep(host, tmp_path / "modest", {"train.py": MODEST}), resources=resources)
    assert (following.status, host.logs(following.job_id)) == ("succeeded", ["nine tenths are mine"])
    wait_until(lambda: not host.tree(job.job_id)[1:], "the end of the tree")
    wait_free(gpu)
