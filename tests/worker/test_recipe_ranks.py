"""Recipes on several ranks: one model, one voice, bit for bit the same after an interruption, one batch for all."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from shared import recipes
from shared.micro_batch import MicroBatch
from tests.listening import CHECKOUT, Attempt, finished, listening
from tests.torchrun import ended, started
from tests.waiting import wait_until
from worker.recipes import image_classifier as images
from worker.recipes import language_model as lm

pytestmark = pytest.mark.timeout(600)  # up to nine processes that import torch, on a busy machine

# The trainer. Each rank says a digest of its state where it checkpoints, whether or not it is the one that writes;
# in the middle of epoch `kill_in` it is killed, and `limit` rows are as many as its device has room for.
WATCHED = """
    import hashlib, os, signal, sys
    import torch
    from torch.nn import functional as F
    from epochcast.run import Run
    from epochcast.training import current_run
    from worker.trainer import main

    checkpoint, batches, compute = Run.checkpoint, Run.batches, F.cross_entropy

    def digest(value):
        match value:
            case dict():
                return "".join(f"{{name}}{{digest(value[name])}}" for name in sorted(value, key=str))
            case list() | tuple():
                return "".join(map(digest, value))
            case torch.Tensor():
                return value.numpy().tobytes().hex()
            case _:
                return repr(value)

    def saying(run):
        state = digest(run._state.contents())
        run.log("state " + hashlib.sha256(state.encode()).hexdigest())
        checkpoint(run)

    def killed(run, loader):
        for step, batch in enumerate(batches(run, loader)):
            if (run.epoch, step) == ({kill_in}, 3):
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    def crowded(scores, targets, **options):
        if torch.is_grad_enabled() and current_run().epoch > 1 and len(targets) > {limit}:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return compute(scores, targets, **options)

    Run.checkpoint, Run.batches, F.cross_entropy = saying, killed, crowded
    sys.exit(main())
"""
TEXT: dict[str, Any] = {
    "layers": 1, "width": 16, "heads": 1, "context": 16, "micro_batch_size": 8, "steps_per_epoch": 10,
    "sample_bytes": 8, "text_dir": "@", "dropout": 0.1,
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "image-classifier": {"width": 4, "dropout": 0.2},
    "tabular-classifier": {"dataset": "wine"},
    "language-model": {**TEXT, "accumulation_steps": 2},
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(" ".join(f"{n} and {n + 1}" for n in range(10 * number, 200)))
    return folder


def told(recipe: str, hyperparameters: dict[str, Any], text: Path, **more: Any) -> dict[str, Any]:
    chosen = {name: str(text) if value == "@" else value for name, value in hyperparameters.items()}
    return {"recipe": recipe, "params": recipes.validate(recipe, chosen), "total_epochs": 4, **more}


def train(folder: Path, ranks: int, told: dict[str, Any], kill_in: int = 0, limit: int = 10**9) -> Attempt:
    script = dedent(WATCHED).format(kill_in=kill_in, limit=limit)
    with listening(folder, **told) as attempt:
        for code, output in (endings := ended(attempt, ranks, "-c", script)):
            # One that is killed a moment before another one takes it along, out of its step.
            assert code in ((-9, 1) if kill_in else (0,)), output
        assert not kill_in or -9 in dict(endings)
        attempt.settle()  # what an ended rank said last may still be on its way
    return attempt


def states(attempt: Attempt) -> dict[int, list[str]]:
    """What each rank said of its state, epoch after epoch."""
    said: dict[int, list[str]] = {}
    for line in attempt.said("log"):
        if line["message"].startswith("state "):
            said.setdefault(line["rank"], []).append(line["message"])
    return said


def losses(attempt: Attempt, name: str = "train_loss") -> list[float]:
    return [report["metrics"][name] for report in attempt.said("report")]


def model(attempt: Attempt) -> bytes:
    return (attempt.out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("recipe", "ranks"), [("image-classifier", 3), ("tabular-classifier", 2), ("language-model", 2)]
)
def test_ranks_hold_one_state_and_end_with_the_same_model_when_killed_inside_an_epoch(
    tmp_path: Path, text: Path, recipe: str, ranks: int
) -> None:
    """Three ranks where it is most: a sum of two numbers is rounded the same in any order, one of three is not."""
    chosen = told(recipe, SMALL[recipe], text)
    whole = train(tmp_path / "whole", ranks, chosen)
    said = states(whole)
    assert said == dict.fromkeys(range(ranks), said[0])
    assert len(set(said[0])) == 4
    assert losses(whole)[-1] < losses(whole)[0]

    killed = train(tmp_path / "killed", ranks, chosen, kill_in=3)
    assert [one["epoch"] for one in killed.checkpoints()] == [2, 1]
    again = train(tmp_path / "again", ranks, {**chosen, "checkpoints": killed.checkpoints()})
    assert losses(again) == losses(whole)[2:]
    assert states(again) == {rank: digests[2:] for rank, digests in said.items()}
    assert model(again) == model(whole)


def test_a_stop_inside_an_epoch_ends_all_ranks_in_order_and_changes_nothing(tmp_path: Path, text: Path) -> None:
    chosen = told("language-model", {**SMALL["language-model"], "steps_per_epoch": 100}, text)
    whole = train(tmp_path / "whole", 2, chosen)
    with listening(tmp_path / "stopped", **chosen) as stopped, started(stopped, 2) as ranks:
        wait_until(lambda: stopped.said("report"), "the first epoch", timeout_s=120)
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
        for code, output in map(finished, ranks):
            assert code == 0, output
        stopped.settle()
    trained = len(stopped.said("report"))
    assert 1 <= trained < 4
    assert stopped.said("model") == []
    resumed = train(tmp_path / "resumed", 2, {**chosen, "checkpoints": stopped.checkpoints()})
    assert losses(resumed) == losses(whole)[trained:]
    assert model(resumed) == model(whole)


def test_rank_0_alone_speaks_and_a_resume_at_an_epochs_end_changes_nothing(tmp_path: Path, text: Path) -> None:
    chosen = told("tabular-classifier", SMALL["tabular-classifier"], text)
    whole = train(tmp_path / "whole", 2, chosen)
    for kind in ("report", "checkpoint"):
        assert [(packet["rank"], packet["epoch"]) for packet in whole.said(kind)] == [(0, n) for n in range(1, 5)]
    assert {line["rank"] for line in whole.said("log") if not line["message"].startswith("state ")} == {0}
    assert [packet["rank"] for packet in whole.said("model")] == [0]
    assert any("in 3 classes, 2 ranks" in line["message"] for line in whole.said("log"))

    resumed = train(tmp_path / "resumed", 2, {**chosen, "checkpoints": whole.checkpoints()[-1:]})
    assert losses(resumed) == losses(whole)[1:]
    assert model(resumed) == model(whole)


@pytest.mark.parametrize(
    ("recipe", "hyperparameters", "tolerance"),
    [
        # 142 rows to train on: the second step has one row for two ranks; and 47 is no even number.
        ("tabular-classifier", {"dataset": "wine", "dropout": 0.0, "batch_size": 141, "micro_batch_size": 47}, 1e-4),
        ("image-classifier", {"model": "mlp", "width": 8, "dropout": 0.0, "batch_size": 100}, 1e-4),
        ("image-classifier", {"width": 4, "dropout": 0.0, "batch_size": 100}, 0.2),  # each rank norms its own rows
        ("language-model", {**TEXT, "dropout": 0.0, "micro_batch_size": 5, "accumulation_steps": 3}, 1e-4),
    ],
)
def test_on_two_ranks_the_losses_go_the_way_they_go_on_one(
    tmp_path: Path, text: Path, recipe: str, hyperparameters: dict[str, Any], tolerance: float
) -> None:
    chosen = told(recipe, hyperparameters, text)
    one, two = (train(tmp_path / f"{ranks}", ranks, chosen) for ranks in (1, 2))
    for name in ("train_loss", "val_loss"):
        assert losses(two, name) == pytest.approx(losses(one, name), rel=tolerance)
    assert model(two) != model(one)  # they were two: sums in another order round otherwise


def test_rank_without_a_validation_image_of_its_own_counts_none(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    random = np.random.default_rng(0)
    for name, count in (("train", 20), ("val", 1)):
        np.savez(data / f"{name}.npz", images=random.random((count, 6, 6)), labels=np.arange(count) % 2)
    hyperparameters = {"dataset": "npz", "data_dir": str(data), "width": 2, "batch_size": 10, "lr": 1e-6}
    chosen = told("image-classifier", hyperparameters, data, total_epochs=1)
    one, two = (train(tmp_path / f"{ranks}", ranks, chosen) for ranks in (1, 2))
    assert losses(two, "val_loss") == pytest.approx(losses(one, "val_loss"), rel=0.1)
    assert losses(two, "val_accuracy") in ([0.0], [1.0])


def test_rank_holds_its_share_of_a_micro_batch_and_a_shrunk_job_half_of_that(tmp_path: Path, text: Path) -> None:
    recipe, hyperparameters = "tabular-classifier", {"dataset": "wine", "batch_size": 32, "dropout": 0.0}
    chosen = told(recipe, hyperparameters, text)
    with listening(tmp_path / "crowded", **chosen) as crowded:
        script = dedent(WATCHED).format(kill_in=0, limit=8)
        assert {code for code, _ in ended(crowded, 2, "-c", script)} == {1}
    assert crowded.said("failure")[0]["error"]["type"] == "cuda_oom"
    assert [one["epoch"] for one in crowded.checkpoints()] == [1]

    smaller = MicroBatch(32, 1).smaller()
    assert smaller == MicroBatch(16, 2)  # 8 rows for each of the two
    less = {**chosen, "params": {**chosen["params"], **smaller.as_hyperparameters()}}
    shrunk = train(tmp_path / "shrunk", 2, {**less, "checkpoints": crowded.checkpoints()}, limit=8)
    roomy = train(tmp_path / "roomy", 2, chosen)
    assert losses(shrunk) == pytest.approx(losses(roomy)[1:], rel=1e-3)


def test_fewer_rows_than_ranks_are_a_user_error_with_a_way_out(tmp_path: Path, text: Path) -> None:
    with listening(tmp_path / "a", **told("tabular-classifier", {"batch_size": 1}, text)) as attempt:
        assert [code for code, _ in ended(attempt, 2)] == [1, 1]
    for failure in attempt.said("failure"):
        assert failure["error"]["type"] == "user_error"
        assert failure["error"]["message"].startswith("DataError: batch_size 1 is what all 2 ranks share")

    with pytest.raises(images.DataError, match="make it 8 or more, or take fewer ranks"):
        images.rows_at_once(recipes.validate("image-classifier", {"batch_size": 7}), 8)
    with pytest.raises(lm.DataError, match=r"micro_batch_size 2 x accumulation_steps 3 .* make them 8 or more"):
        lm.texts_at_once(recipes.validate("language-model", {"micro_batch_size": 2, "accumulation_steps": 3}), 8)


def test_torchrun_trains_it_on_a_laptop(tmp_path: Path) -> None:
    script = CHECKOUT / "worker/recipes/tabular_classifier.py"
    torchrun = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    code, output = finished(torchrun)
    assert code == 0, output
    reported = re.findall(r"\[report\] epoch (\d+)/50", output)
    assert reported == [str(epoch) for epoch in range(1, 51)]
    assert (tmp_path / "epochcast-run" / "model.safetensors").is_file()
