"""Checkpoints of an FSDP model: each rank writes its part, other ranks may read them, and a resume is bit for bit."""

import hashlib
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.listening import Attempt, finished, listening
from tests.ranks import started

# Ends itself at `until` = [epoch, batch] as a stop does: by SIGTERM to each rank. Dropout draws in each rank.
FSDP = """
import os, signal
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
import epochcast

dist.init_process_group("gloo")
run = epochcast.init()
x = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
model = torch.nn.Sequential(torch.nn.Linear(8, 10), torch.nn.Dropout(0.2), torch.nn.Linear(10, 3))
fully_shard(model[0])
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
seen = {"batches": 0}
run.state(model=model, optimizer=optimizer, scheduler=scheduler, seen=seen)
print("resumed", run.resume(), run.epoch, seen, scheduler.last_epoch, flush=True)
if run.params.get("show"):
    run.save_model(model)
    whole = run.load()
    print("whole", sorted(whole), tuple(whole["model"]["0.weight"].shape), flush=True)
else:
    loader = DataLoader(TensorDataset(x, x[:, :3]), batch_size=4, sampler=run.sampler(48))
    for epoch in run.epochs():
        for rows, targets in run.batches(loader):
            loss = torch.nn.functional.mse_loss(model(rows), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen["batches"] += 1
            if run.params.get("inside") and run.step == 1:
                run.checkpoint()
            if [epoch, run.step] == run.params.get("until"):
                os.kill(os.getpid(), signal.SIGTERM)
        scheduler.step()
        run.report(epoch=epoch, train_loss=1.0)
        run.checkpoint()
    if run.finished:
        run.save_model(model)
dist.destroy_process_group()
"""


def train(folder: Path, world: int, checkpoints: list[dict[str, Any]], **params: Any) -> tuple[Attempt, str]:
    """One attempt to its end; rank 0's output."""
    with listening(folder, total_epochs=3, params=params, checkpoints=checkpoints) as attempt:
        (folder / "train.py").write_text(FSDP)
        with started(attempt, world, "train.py") as ranks:
            ended = [rank.ended() for rank in ranks]
        assert [code for code, _ in ended] == [0] * world, ended
        attempt.settle()
        return attempt, ended[0][1]


def model_of(attempt: Attempt) -> bytes:
    return (attempt.out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("world", "params"), [(2, {"inside": True}), (4, {})])
def test_stopped_and_resumed_fsdp_training_ends_with_the_same_weights(
    world: int, params: dict[str, Any], tmp_path: Path
) -> None:
    whole, _ = train(tmp_path / "whole", world, [], **params)
    stopped, _ = train(tmp_path / "stopped", world, [], until=[2, 1], **params)
    assert not stopped.said("model")
    newest = stopped.sharded_checkpoints()[0]
    assert newest["epoch"] == (2 if params else 1)
    resumed, output = train(tmp_path / "resumed", world, stopped.sharded_checkpoints(), **params)
    assert f"resumed True {newest['epoch']}" in output
    assert model_of(resumed) == model_of(whole)


def test_each_rank_tells_its_own_files_and_they_make_up_the_folder(tmp_path: Path) -> None:
    attempt, _ = train(tmp_path / "a", 2, [], inside=True)
    told = defaultdict(list)
    for packet in attempt.said("shard"):
        told[packet["checkpoint"]].append(packet)
        assert packet["world"] == 2
        for file in packet["files"]:
            content = (attempt.out / packet["checkpoint"] / file["file"]).read_bytes()
            assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert sorted(told) == [
        "ckpt-000001", "ckpt-000001-00000001", "ckpt-000002", "ckpt-000002-00000001", "ckpt-000003",
        "ckpt-000003-00000001",
    ]  # fmt: skip
    for name, packets in told.items():
        files = [file["file"] for packet in packets for file in packet["files"]]
        assert sorted(files) == sorted(path.name for path in (attempt.out / name).iterdir())
    assert not attempt.said("checkpoint")


def test_parts_of_four_ranks_are_read_by_two_and_by_one(tmp_path: Path) -> None:
    four, _ = train(tmp_path / "four", 4, [])
    for world in (2, 1):
        again, output = train(tmp_path / f"by-{world}", world, four.sharded_checkpoints(), show=True)
        assert "resumed True 3 {'batches': 9} 3" in output
        assert "whole ['model', 'optimizer', 'scheduler', 'seen'] (10, 8)" in output
        assert model_of(again)[-400:] == model_of(four)[-400:]  # the tensors; the header before them tells the params


@pytest.mark.parametrize("damage", ["a missing part", "a part cut off", "no metadata"])
def test_damaged_parts_fall_back_to_the_checkpoint_before_in_all_ranks(damage: str, tmp_path: Path) -> None:
    attempt, _ = train(tmp_path / "a", 2, [])
    newest = attempt.out / "ckpt-000003"
    match damage:
        case "a missing part":
            (newest / "__1_0.distcp").unlink()
        case "a part cut off":
            part = newest / "__1_0.distcp"
            part.write_bytes(part.read_bytes()[:-100])
        case _:
            (newest / ".metadata").unlink()
    again, output = train(tmp_path / "again", 2, attempt.sharded_checkpoints(), show=True)
    assert "resumed True 2" in output
    (resumed, *_) = again.said("resumed")
    assert resumed["epoch"] == 2
    assert resumed["unreadable"][0].startswith("ckpt-000003: ")
    shutil.rmtree(attempt.out)


CONTENTS = """
import resource, shutil
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
import epochcast

dist.init_process_group("gloo")
run = epochcast.init()
model = torch.nn.Linear(8, 6)
fully_shard(model)
for _ in range(2):
    run.checkpoint(weights=model.state_dict(), note="hello")
    dist.barrier()
    if run.rank == 0:
        shutil.rmtree(run.params["out"] + "/ckpt-000000", ignore_errors=True)  # as once it is uploaded
    dist.barrier()
if run.rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
try:
    run.checkpoint(weights=model.state_dict())
except OSError as error:
    print("refused:", error, flush=True)
"""


def test_contents_in_parts_get_a_name_once_and_a_full_disk_of_one_rank_is_an_error_in_all(tmp_path: Path) -> None:
    out = str(tmp_path / "a" / "out")
    with listening(tmp_path / "a", params={"out": out}) as attempt:
        (tmp_path / "a" / "train.py").write_text(CONTENTS)
        with started(attempt, 2, "train.py") as ranks:
            ended = [rank.ended() for rank in ranks]
        attempt.settle()
    assert [code for code, _ in ended] == [0, 0], ended
    assert all("refused: " in output and "File too large" in output for _, output in ended), ended
    assert {packet["checkpoint"] for packet in attempt.said("shard")} == {"ckpt-000000", "ckpt-000000.2"}
    assert [path.name for path in attempt.out.iterdir()] == ["ckpt-000000.2"]

    (tmp_path / "load.py").write_text("import epochcast; print(epochcast.init().load())")
    told = [{"file": str(attempt.out / "ckpt-000000.2"), "epoch": 0, "step": None}]
    with listening(tmp_path / "b", checkpoints=told) as again:
        code, output = finished(again.start(str(tmp_path / "load.py")))
    assert code == 0, output
    assert "'note': 'hello'" in output
    assert "'weight': tensor(" in output
