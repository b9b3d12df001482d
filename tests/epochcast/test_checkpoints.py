"""The training SDK: epochs, and checkpoints that bring a run back bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from epochcast.training import Run
from tests.epochcast.training_run import Begin, Walk, loader, packet
from tests.listening import Attempt


def test_epochs_count_from_one_and_each_is_announced_as_ended(begin: Begin) -> None:
    run, attempt = begin()
    assert list(run.epochs()) == [1, 2, 3]
    assert run.finished
    packet(attempt, "epoch", 4)
    assert [said["epoch"] for said in attempt.said("epoch")] == [0, 1, 2, 3]  # 0: the first one begins


def test_each_epoch_draws_its_own_numbers_and_the_same_in_another_attempt(begin: Begin) -> None:
    def draws(run: Run) -> list[tuple[float, float]]:
        return [(float(torch.rand(1)), float(np.random.rand())) for _ in run.epochs()]

    first, second = draws(begin()[0]), draws(begin()[0])
    assert first == second
    assert len(set(first)) == 3
    assert draws(begin(seed=1)[0]) != first


def test_resumed_run_goes_on_after_its_checkpoint_and_ends_the_same(begin: Begin) -> None:
    def train(told: dict[str, Any], until: int) -> tuple[Walk, dict[str, Any], Attempt, list[int]]:
        run, attempt = begin(**told)
        walk, extra, trained = Walk(), {"best": 0.0}, []
        run.state(walk=walk, extra=extra)
        assert run.resume() == bool(told)
        for epoch in run.epochs():
            for (batch,) in run.batches(loader()):
                walk.step(batch)
            trained.append(epoch)
            extra["best"] = float(walk.place)
            run.checkpoint()
            if epoch == until:
                break
        packet(attempt, "checkpoint", len(trained))
        return walk, extra, attempt, trained

    whole, best, _, _ = train({}, 3)
    _, _, interrupted, _ = train({}, 2)
    resumed, best_again, _, trained = train({"checkpoints": interrupted.checkpoints()}, 3)
    assert trained == [3]
    assert torch.equal(whole.place, resumed.place)
    assert best == best_again


def test_checkpoint_is_complete_on_disk_and_named_once(begin: Begin) -> None:
    import hashlib

    run, attempt = begin()
    run.report(epoch=1, loss=1.0)
    run.checkpoint(weights=torch.ones(3))
    run.checkpoint(weights=torch.zeros(3))
    packet(attempt, "checkpoint", 2)
    said = attempt.said("checkpoint")
    assert [one["file"] for one in said] == ["ckpt-000001.pt", "ckpt-000001.2.pt"]
    for one in said:
        content = (attempt.out / one["file"]).read_bytes()
        assert (one["bytes"], one["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert sorted(file.name for file in attempt.out.iterdir()) == sorted(one["file"] for one in said)


def test_contents_are_loaded_back_and_epochs_go_on(begin: Begin) -> None:
    run, attempt = begin()
    for epoch in run.epochs():
        run.checkpoint(weights=torch.full((2,), float(epoch)), note="hello")
        break
    packet(attempt, "checkpoint")
    again, second = begin(checkpoints=attempt.checkpoints())
    contents = again.load()
    assert contents is not None
    assert contents["note"] == "hello"
    assert torch.equal(contents["weights"], torch.ones(2))
    assert list(again.epochs()) == [2, 3]
    assert packet(second, "resumed")["epoch"] == 1


def test_checkpoints_are_ignored_by_a_script_that_does_not_resume(begin: Begin) -> None:
    run, attempt = begin()
    run.report(epoch=2, loss=1.0)
    run.checkpoint(a=1)
    packet(attempt, "checkpoint")
    again, _ = begin(checkpoints=attempt.checkpoints())
    assert list(again.epochs()) == [1, 2, 3]


@pytest.mark.parametrize("damage", ["cut off", "one bit", "gone", "rubbish"])
def test_damaged_checkpoint_falls_back_to_the_one_before_with_a_log_line(begin: Begin, damage: str) -> None:
    run, attempt = begin()
    for epoch in run.epochs():
        run.checkpoint(weights=torch.full((1000,), float(epoch)))
        if epoch == 2:
            break
    packet(attempt, "checkpoint", 2)
    newest = attempt.out / "ckpt-000002.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "cut off":
            newest.write_bytes(content[: len(content) // 2])
        case "one bit":
            newest.write_bytes(content)
        case "gone":
            newest.unlink()
        case _:
            newest.write_bytes(b"rubbish")
    again, second = begin(checkpoints=attempt.checkpoints())
    contents = again.load()
    assert contents is not None
    assert contents["weights"][0] == 1
    assert list(again.epochs()) == [2, 3]
    resumed = packet(second, "resumed")
    assert resumed["epoch"] == 1
    assert resumed["unreadable"][0].startswith("ckpt-000002.pt: ")
    assert "ckpt-000002.pt can't be read" in packet(second, "log")["message"]


def test_without_a_readable_checkpoint_the_run_starts_from_scratch(begin: Begin, tmp_path: Path) -> None:
    run, attempt = begin(checkpoints=[{"file": str(tmp_path / "gone.pt"), "epoch": 2, "step": None}])
    run.state(walk=Walk())
    assert run.resume() is False
    assert list(run.epochs()) == [1, 2, 3]
    assert "gone.pt" in packet(attempt, "log")["message"]


def test_contents_that_could_not_be_read_back_are_refused_at_once(begin: Begin) -> None:
    run, attempt = begin()
    with pytest.raises(TypeError, match="can't be read back safely"):
        run.checkpoint(thing=Path("x"))
    assert list(attempt.out.iterdir()) == []
    with pytest.raises(TypeError, match="best is a float; state takes"):
        run.state(best=0.5)
    with pytest.raises(ValueError, match="nothing to checkpoint"):
        run.checkpoint()


def test_checkpoint_of_other_objects_is_a_clear_error(begin: Begin) -> None:
    run, attempt = begin()
    run.state(walk=Walk())
    run.checkpoint()
    packet(attempt, "checkpoint")
    again, _ = begin(checkpoints=attempt.checkpoints())
    again.state(walk=Walk(), scheduler=Walk())
    with pytest.raises(ValueError, match="holds walk, but not scheduler"):
        again.resume()


def test_full_disk_is_an_os_error_and_leaves_no_file(begin: Begin) -> None:
    import resource

    run, attempt = begin()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            run.checkpoint(weights=torch.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(attempt.out.iterdir()) == []


def test_other_ranks_write_nothing(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    run, attempt = begin()
    run.checkpoint(a=1)
    run.save_model(torch.nn.Linear(1, 1))
    run.report(epoch=1, loss=1.0)
    assert packet(attempt, "report")["rank"] == 1
    assert list(attempt.out.iterdir()) == []
