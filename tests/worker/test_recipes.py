"""The recipes: they learn, repeat bit for bit over an interruption, stop in order, and name what is wrong with data."""

import gzip
import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from shared import recipes
from tests.listening import Attempt, finished, listening
from tests.waiting import wait_until
from worker.recipes import image_classifier as images
from worker.recipes import tabular_classifier as tables

SMALL: dict[str, dict[str, Any]] = {
    "image-classifier": {"dataset": "digits", "width": 8, "dropout": 0.2},
    "tabular-classifier": {"dataset": "breast-cancer"},
}

# The trainer. In the third epoch it waits until it is asked to stop: an epoch of so little data is over in no time.
WAITS_FOR_STOP = """
import sys, time
from epochcast.run import Run
from worker.trainer import main

batches = Run.batches

def waiting(run, loader):
    for step, batch in enumerate(batches(run, loader)):
        while (run.epoch, step) == (3, 1) and not run.stopping:
            time.sleep(0.01)
        yield batch

Run.batches = waiting
sys.exit(main())
"""


def told(recipe: str, hyperparameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"recipe": recipe, "params": recipes.validate(recipe, hyperparameters), "total_epochs": 4, **more}


def train(folder: Path, recipe: str, hyperparameters: dict[str, Any], **more: Any) -> tuple[Attempt, str]:
    with listening(folder, **told(recipe, hyperparameters, **more)) as attempt:
        code, output = attempt.train()
        assert code == 0, output
        wait_until(lambda: attempt.said("model"), "the model")
    return attempt, output


def weights(attempt: Attempt) -> bytes:
    """The tensors of the model file, without its header (which names no attempt but isn't what is compared)."""
    content = (attempt.out / "model.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.parametrize("recipe", SMALL)
def test_recipe_learns_and_says_so_each_epoch(tmp_path: Path, recipe: str) -> None:
    attempt, _ = train(tmp_path / "a", recipe, SMALL[recipe])
    reports = [report["metrics"] for report in attempt.said("report")]
    assert [set(report) for report in reports] == [{"train_loss", "val_loss", "val_accuracy", "lr"}] * 4
    assert reports[-1]["train_loss"] < reports[0]["train_loss"]
    assert reports[-1]["val_accuracy"] > 0.9
    lines = [line["message"] for line in attempt.said("log")]
    assert f"Epoch 4/4 - Loss: {reports[-1]['train_loss']:.4f}" in lines
    assert [one["epoch"] for one in attempt.said("checkpoint")] == [1, 2, 3, 4]
    del reports[-1]["lr"]
    assert attempt.said("model")[0]["metrics"] == reports[-1]
    with safe_open(attempt.out / "model.safetensors", "pt") as model:
        about = json.loads(model.metadata()["epochcast"])
    assert about["recipe"] == recipe
    assert len(about["config"]["classes"]) in (2, 10)


@pytest.mark.parametrize("recipe", SMALL)
def test_stopped_and_resumed_recipe_ends_with_the_same_model_bit_for_bit(tmp_path: Path, recipe: str) -> None:
    whole, _ = train(tmp_path / "whole", recipe, SMALL[recipe], total_epochs=6)

    with listening(tmp_path / "stopped", **told(recipe, SMALL[recipe], total_epochs=6)) as stopped:
        process = stopped.start("-c", WAITS_FOR_STOP)
        wait_until(lambda: len(stopped.said("report")) >= 2, "two epochs", timeout_s=60)
        process.send_signal(signal.SIGTERM)
        code, output = finished(process)
        stopped.settle()
    assert code == 0, output
    trained = len(stopped.said("checkpoint"))
    assert 2 <= trained < 6
    assert stopped.said("model") == []

    resumed, _ = train(tmp_path / "resumed", recipe, SMALL[recipe], total_epochs=6, checkpoints=stopped.checkpoints())
    assert [one["epoch"] for one in resumed.said("report")] == list(range(trained + 1, 7))
    assert weights(resumed) == weights(whole)
    assert resumed.said("report")[-1]["metrics"] == whole.said("report")[-1]["metrics"]
    assert (resumed.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_killed_after_the_last_epoch_the_model_is_saved_by_the_next_attempt(tmp_path: Path) -> None:
    recipe = "tabular-classifier"
    whole, _ = train(tmp_path / "whole", recipe, SMALL[recipe])
    again, _ = train(tmp_path / "again", recipe, SMALL[recipe], checkpoints=whole.checkpoints())
    assert again.said("report") == []
    assert again.said("model")[0]["metrics"] == whole.said("model")[0]["metrics"]
    assert weights(again) == weights(whole)


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    recipe = "tabular-classifier"
    models = [train(tmp_path / f"{seed}", recipe, SMALL[recipe], seed=seed)[0] for seed in (0, 1)]
    assert weights(models[0]) != weights(models[1])


# --- Images


def stripes(count: int, seed: int, size: int = 12) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Noise with a bright left or right half."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    pictures = random.integers(0, 100, (count, size, size), dtype=np.uint8)
    for image, label in zip(pictures, labels, strict=True):
        image[:, label * size // 2 : (label + 1) * size // 2] += 100
    return pictures, labels


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_folder_of_npz_files_is_split_and_learned(tmp_path: Path, model: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    pictures, labels = stripes(300, 0)
    np.savez(data / "first.npz", images=pictures[:200], labels=np.array(["left", "right"])[labels[:200]])
    np.savez(data / "second.npz", images=pictures[200:], labels=np.array(["left", "right"])[labels[200:]])
    chosen = {"dataset": "npz", "data_dir": str(data), "model": model, "width": 4}
    attempt, _ = train(tmp_path / "a", "image-classifier", chosen)
    assert attempt.said("report")[-1]["metrics"]["val_accuracy"] > 0.9
    assert "240 training and 60 validation images" in attempt.said("log")[0]["message"]


def test_colour_images_with_a_split_of_their_own_are_learned(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, count in (("train", 200), ("val", 50)):
        pictures, labels = stripes(count, count, size=9)
        np.savez(data / f"{name}.npz", images=np.stack([pictures] * 3, axis=-1) / 255.0, labels=labels)
    chosen = {"dataset": "npz", "data_dir": str(data), "width": 4}
    attempt, _ = train(tmp_path / "a", "image-classifier", chosen)
    assert attempt.said("report")[-1]["metrics"]["val_accuracy"] > 0.9
    assert "200 training and 50 validation images of [3, 9, 9]" in attempt.said("log")[0]["message"]


def test_fashion_mnist_is_read_from_its_own_files(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for part, count in (("train", 300), ("t10k", 60)):
        pictures, labels = stripes(count, count, size=28)
        (data / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pictures.tobytes()))
        (data / f"{part}-labels-idx1-ubyte").write_bytes(bytes(8) + labels.astype(np.uint8).tobytes())
    chosen = {"dataset": "fashion-mnist", "data_dir": str(data), "width": 2}
    attempt, _ = train(tmp_path / "a", "image-classifier", chosen, total_epochs=2)
    assert "300 training and 60 validation images of [1, 28, 28]" in attempt.said("log")[0]["message"]
    (data / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(images.DataError, match=r"t10k-labels-idx1-ubyte\.gz is missing"):
        images.load_data(recipes.validate("image-classifier", chosen), 0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "holds no .npz file"),
        ({"images": np.zeros((4, 8, 8))}, "no array named 'labels"),
        ({"images": np.zeros((4, 8)), "labels": np.zeros(4)}, "needed: numbers (N, H, W[, C])"),
        ({"images": np.zeros((4, 8, 8)), "labels": np.zeros(3)}, "one for each of the 4 images"),
        ({"images": np.full((4, 8, 8), np.nan), "labels": np.arange(4)}, "NaN or infinity"),
        ({"images": np.zeros((40, 8, 8)), "labels": np.zeros(40)}, "at least two"),
        (b"PK rubbish", "can't be read"),
    ],
)
def test_unusable_images_are_a_user_error_that_names_the_file(tmp_path: Path, arrays: Any, message: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    match arrays:
        case dict():
            np.savez(data / "mine.npz", **arrays)
        case bytes():
            (data / "mine.npz").write_bytes(arrays)
    hyperparameters = recipes.validate("image-classifier", {"dataset": "npz", "data_dir": str(data)})
    with pytest.raises(images.DataError, match=re.escape(message)):
        images.load_data(hyperparameters, 0)


def test_moved_images_come_with_black_edges_and_mirrored_as_drawn() -> None:
    x = torch.arange(1, 25, dtype=torch.uint8).reshape(2, 1, 3, 4)
    framed = images.in_frames(x, 1)
    moves = torch.tensor([[1, 1, 0], [2, 0, 0], [1, 1, 1], [0, 1, 1]])  # (1, 1) is where the image was
    still, moved, mirrored, both = images.moved(framed, 1, torch.tensor([0, 1, 1, 0]), moves)[:, 0]
    assert still.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert moved.tolist() == [[0, 17, 18, 19], [0, 21, 22, 23], [0, 0, 0, 0]]
    assert mirrored.tolist() == [[16, 15, 14, 13], [20, 19, 18, 17], [24, 23, 22, 21]]
    assert both.tolist() == [[0, 0, 0, 0], [4, 3, 2, 1], [8, 7, 6, 5]]


def test_moves_are_drawn_from_all_there_are() -> None:
    moves = images.draw_moves(np.random.default_rng(0), 500, 2, True)
    assert [sorted(set(moves[:, column].tolist())) for column in range(3)] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1]]
    assert not images.draw_moves(np.random.default_rng(0), 500, 0, False).any()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"dataset": "digits"}, (0, False)),
        ({"dataset": "fashion-mnist"}, (1, True)),
        ({"dataset": "fashion-mnist", "shift": 0}, (0, True)),
        ({"dataset": "fashion-mnist", "flip": False}, (1, False)),
        ({"dataset": "npz", "data_dir": "/data", "shift": 3}, (3, False)),
    ],
)
def test_what_is_moved_depends_on_the_data_unless_it_is_said(
    chosen: dict[str, Any], expected: tuple[int, bool]
) -> None:
    assert images.augmentation(recipes.validate("image-classifier", chosen), (28, 28)) == expected


def test_moves_out_of_sight_are_refused() -> None:
    chosen = recipes.validate("image-classifier", {"shift": 8})
    with pytest.raises(images.DataError, match="shift 8 moves images of 8x9 pixels out of sight; make it smaller"):
        images.augmentation(chosen, (8, 9))


def test_moved_images_are_learned_and_in_smaller_parts_the_losses_are_the_same(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    pictures, labels = stripes(300, 0)
    np.savez(data / "all.npz", images=pictures, labels=labels)
    chosen = {"dataset": "npz", "data_dir": str(data), "shift": 2, "model": "mlp", "width": 8, "dropout": 0.0}
    still, _ = train(tmp_path / "still", "image-classifier", {**chosen, "shift": 0})
    whole, _ = train(tmp_path / "whole", "image-classifier", chosen)
    parts, _ = train(tmp_path / "parts", "image-classifier", {**chosen, "micro_batch_size": 16})
    losses = [[report["metrics"]["train_loss"] for report in run.said("report")] for run in (still, whole, parts)]
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    assert losses[1] != pytest.approx(losses[0], rel=1e-2)
    assert whole.said("report")[-1]["metrics"]["val_accuracy"] > 0.9


# --- Tables


def people(path: Path, rows: int = 200) -> None:
    """Who says yes depends on age and colour; some ages are missing, and each name is another."""
    random = np.random.default_rng(0)
    lines = ["name,age,colour,answer"]
    for row in range(rows):
        age, colour = random.integers(18, 80), ("red", "green", "blue")[random.integers(3)]
        answer = "yes" if (age > 50) == (colour != "blue") else "no"
        lines.append(f'"Doe, {row}",{"" if row % 17 == 0 else age},{colour},{answer}')
    path.write_text("\n".join(lines))


def test_table_with_numbers_categories_gaps_and_names_is_learned(tmp_path: Path) -> None:
    people(tmp_path / "people.csv")
    chosen = {"dataset": "csv", "path": str(tmp_path / "people.csv"), "target": "answer", "lr": 0.01}
    attempt, _ = train(tmp_path / "a", "tabular-classifier", chosen, total_epochs=40)
    assert attempt.said("report")[-1]["metrics"]["val_accuracy"] > 0.75
    with safe_open(attempt.out / "model.safetensors", "pt") as model:
        config = json.loads(model.metadata()["epochcast"])["config"]
    assert config["columns"] == ["age", "colour=blue", "colour=green", "colour=red"]
    assert config["classes"] == ["no", "yes"]


@pytest.mark.parametrize(
    ("content", "target", "message"),
    [
        (None, "y", "can't be read on this host: No such file"),
        ("", "y", "has no rows"),
        ("x,y\n", "y", "has no rows"),
        ("x,y\n1,a\n2,b\n", "z", "no column 'z' to predict; its columns are x, y"),
        ("x,y\n1,a\n2,b,c\n", "y", "line 3 has 3 fields, the header 2"),
        ("x,y\n1,a\n\n2,\n", "y", "line 4: y, the column to predict, is empty"),
        ("x,x,y\n1,2,a\n", "y", "several columns named x"),
        ("x,y\n1,a\n2,a\n3,a\n", "y", "has 1 different values"),
        ("x,y\n" + "\n".join(f"{n},{n}" for n in range(30)), "y", "has 30 different values in 30 rows"),
        ("x,y\n" + "\n".join(f"{n},{n % 2}" for n in range(30)) + "\nO7,1", "y", "line 32: column x is 'O7'"),
        ("x,y\n" + "\n".join(f"{n},{n % 2}" for n in range(30)) + "\ninf,1", "y", "line 32: column x is 'inf'"),
        ('x,y\n"1,a\n2,b\n', "y", "correct the quoting"),
        (b"x,y\n\xff,1\n", "y", "is not UTF-8"),
    ],
)
def test_unusable_table_is_a_user_error_that_names_line_and_column(
    tmp_path: Path, content: str | bytes | None, target: str, message: str
) -> None:
    file = tmp_path / "table.csv"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    hyperparameters = recipes.validate("tabular-classifier", {"dataset": "csv", "path": str(file), "target": target})
    with pytest.raises(tables.DataError, match=re.escape(message)) as refusal:
        tables.load_table(hyperparameters)
    assert str(file) in str(refusal.value)


def test_data_error_ends_a_job_as_a_user_error(tmp_path: Path) -> None:
    chosen = {"dataset": "csv", "path": str(tmp_path / "gone.csv"), "target": "y"}
    with listening(tmp_path / "a", **told("tabular-classifier", chosen)) as attempt:
        code, _ = attempt.train()
        wait_until(lambda: attempt.said("failure"), "the failure")
    error = attempt.said("failure")[0]["error"]
    assert (code, error["type"]) == (1, "user_error")
    assert error["message"].startswith(f"DataError: {tmp_path}/gone.csv can't be read on this host: No such file")


# --- Micro-batches


@pytest.mark.parametrize(
    ("recipe", "chosen", "micro_batch_size"),
    [
        ("image-classifier", {"dataset": "digits", "model": "mlp", "width": 8, "dropout": 0.0, "batch_size": 100}, 25),
        ("tabular-classifier", {"dataset": "wine", "dropout": 0.0, "batch_size": 40}, 20),
    ],
)
def test_in_smaller_parts_the_losses_are_the_same(
    tmp_path: Path, recipe: str, chosen: dict[str, Any], micro_batch_size: int
) -> None:
    """The last step of an epoch has fewer rows than the others, and its last part fewer than its first: a part that
    counted as much as another would be seen here."""
    whole, _ = train(tmp_path / "whole", recipe, chosen)
    parts, _ = train(tmp_path / "parts", recipe, {**chosen, "micro_batch_size": micro_batch_size})
    steps, _ = train(
        tmp_path / "steps", recipe, {**chosen, "accumulation_steps": chosen["batch_size"] // micro_batch_size}
    )
    losses = [[report["metrics"]["train_loss"] for report in run.said("report")] for run in (whole, parts, steps)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == losses[1]
    assert weights(parts) != weights(whole)  # they did pass in parts: sums in another order round otherwise
