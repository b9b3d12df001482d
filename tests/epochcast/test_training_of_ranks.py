"""A DDP training that is stopped and resumed ends with the weights of one that never was, bit for bit."""

import json
import random
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.listening import Attempt, listening
from tests.ranks import Rank, started
from tests.waiting import wait_until

# `mode`: what the script does between two looks for a stop. Dropout makes each rank draw random numbers of its own.
DDP = """
import contextlib, json, time
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
import epochcast

dist.init_process_group("gloo")
run = epochcast.init()
mode, pause_s = run.params["mode"], run.params["pause_s"] * (5 if run.rank == run.params["slow"] else 1)
x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
model = DistributedDataParallel(
    torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1)),
    find_unused_parameters=True,  # else its first step sums four ranks in another order than the later ones
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
run.state(model=model, optimizer=optimizer)
print("resumed", run.resume(), flush=True)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4, sampler=run.sampler(96))
place = None
for epoch in run.epochs():
    for number, (rows, targets) in enumerate(loader if mode == "whole epochs" else run.batches(loader), 1):
        steps = mode != "accumulating" or number % 3 == 0
        with contextlib.nullcontext() if steps else model.no_sync():
            torch.nn.functional.mse_loss(model(rows), targets).backward()
        if steps:
            optimizer.step()
            optimizer.zero_grad()
        time.sleep(pause_s)
        if mode == "checkpoints inside" and run.step % 5 == 0:
            run.checkpoint()
        place = [epoch, number]
    run.report(epoch=epoch, train_loss=1.0)
    run.checkpoint()
if run.finished:
    run.save_model(model)
print(json.dumps(place), flush=True)
dist.destroy_process_group()
"""


def ask_all(ranks: list[Rank], chance: random.Random, longest_s: float) -> None:
    """SIGTERM to all, in any order, up to `longest_s` apart."""
    moments = [0.0, *sorted(chance.uniform(0, longest_s) for _ in ranks)]
    for (before, moment), rank in zip(pairwise(moments), chance.sample(ranks, len(ranks)), strict=True):
        time.sleep(moment - before)
        rank.process.send_signal(signal.SIGTERM)


def train(folder: Path, world: int, params: dict[str, Any], checkpoints: list[dict[str, Any]]) -> Attempt:
    """One attempt to its end, without a stop."""
    with listening(folder, total_epochs=4, params=params, checkpoints=checkpoints) as attempt:
        (folder / "train.py").write_text(DDP)
        with started(attempt, world, "train.py") as ranks:
            ended = [rank.ended() for rank in ranks]
        assert [code for code, _ in ended] == [0] * world, ended
        attempt.settle()
        return attempt


@pytest.mark.parametrize(
    ("world", "mode"), [(4, "batches"), (2, "accumulating"), (2, "whole epochs"), (2, "checkpoints inside")]
)
def test_stopped_and_resumed_ddp_training_ends_with_the_same_weights(world: int, mode: str, tmp_path: Path) -> None:
    chance = random.Random(f"{world}/{mode}")
    fast = {"mode": mode, "pause_s": 0, "slow": -1}
    whole = train(tmp_path / "whole", world, fast, [])

    slow = {"mode": mode, "pause_s": 0.02, "slow": chance.randrange(world)}
    with listening(tmp_path / "stopped", total_epochs=4, params=slow) as stopped:
        (tmp_path / "stopped" / "train.py").write_text(DDP)
        with started(stopped, world, "train.py") as ranks:
            wait_until(lambda: stopped.said("report"), "the first epoch", timeout_s=60)
            ask_all(ranks, chance, longest_s=0.5)
            ended = [rank.ended() for rank in ranks]
        stopped.settle()
    assert [code for code, _ in ended] == [0] * world, ended
    assert len({output.splitlines()[-1] for _, output in ended}) == 1, ended
    assert not stopped.said("model"), "it was to be stopped before its end"
    epoch, batch = json.loads(ended[0][1].splitlines()[-1])
    newest = stopped.checkpoints()[0]
    if mode == "checkpoints inside":
        assert (newest["epoch"], newest["step"]) in [(epoch, batch), (epoch, None)]
    else:
        assert newest["step"] is None

    resumed = train(tmp_path / "resumed", world, fast, stopped.checkpoints())
    assert (resumed.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


# As scripts for torchrun often are: what speaks and writes stands behind `if rank == 0`.
RANK_0_ALONE = """
import torch
import torch.distributed as dist
import epochcast
from epochcast.ranks import Gathering

Gathering.WAIT_S = 0.5  # for the others' random states, once
dist.init_process_group("gloo")
run = epochcast.init()
done = {"steps": 0}
run.state(done=done)
run.resume()
for epoch in run.epochs():
    for _ in run.batches(range(3)):
        total = torch.ones(1)
        dist.all_reduce(total)
        done["steps"] += int(total)
        if run.rank == 0:
            run.checkpoint()
    if run.rank == 0:
        run.report(epoch=epoch, steps=done["steps"])
        run.checkpoint()
if run.rank == 0:
    run.save_model(torch.nn.Linear(1, 1))
dist.destroy_process_group()
"""


def test_rank_0_alone_may_report_and_checkpoint_also_inside_an_epoch(tmp_path: Path) -> None:
    def attempt_of(folder: Path, checkpoints: list[dict[str, Any]]) -> Attempt:
        with listening(folder, total_epochs=2, checkpoints=checkpoints) as attempt:
            (folder / "train.py").write_text(RANK_0_ALONE)
            with started(attempt, 2, "train.py") as ranks:
                ended = [rank.ended() for rank in ranks]
            assert [code for code, _ in ended] == [0, 0], ended
            attempt.settle()
            return attempt

    whole = attempt_of(tmp_path / "whole", [])
    places = [(said["rank"], said["epoch"], said["step"]) for said in whole.said("checkpoint")]
    assert places == [(0, epoch, step) for epoch in (1, 2) for step in (1, 2, 3, None)]
    assert [report["metrics"]["steps"] for report in whole.said("report")] == [6, 12]
    assert {said["rank"] for said in whole.packets} == {0}
    [warning] = [said["message"] for said in whole.said("log")]
    assert warning.startswith("Only rank 0 called checkpoint() inside an epoch")
    assert whole.said("model")

    resumed = attempt_of(tmp_path / "resumed", whole.checkpoints()[2:])  # from the second step of epoch 2
    assert [report["metrics"]["steps"] for report in resumed.said("report")] == [12]
