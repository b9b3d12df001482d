"""The recipe language-model: it learns from any text, repeats bit for bit, and names what is wrong with a text."""

import json
import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from shared import recipes
from tests.listening import Attempt, finished, listening
from tests.waiting import wait_until
from tests.worker.test_recipes import WAITS_FOR_STOP
from worker.recipes import language_model as lm

SMALL: dict[str, Any] = {
    "layers": 2, "width": 32, "heads": 2, "context": 32, "micro_batch_size": 8, "steps_per_epoch": 15,
    "sample_bytes": 20, "dropout": 0.1,
}  # fmt: skip


def told(hyperparameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"recipe": "language-model", "params": recipes.validate("language-model", hyperparameters), **more}


def train(folder: Path, hyperparameters: dict[str, Any], **more: Any) -> Attempt:
    with listening(folder, **told(hyperparameters, **more)) as attempt:
        code, output = attempt.train()
        assert code == 0, output
        wait_until(lambda: attempt.said("model"), "the model")
    return attempt


def losses(attempt: Attempt) -> list[float]:
    return [report["metrics"]["train_loss"] for report in attempt.said("report")]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Ten files of counting, two of them below."""
    folder = tmp_path / "text"
    (folder / "below").mkdir(parents=True)
    for number in range(10):
        place = folder / "below" if number < 2 else folder
        place.joinpath(f"{number}.txt").write_text(
            "".join(f"{n} and {n + 1} and " for n in range(20 * number, 20 * number + 150))
        )
    return folder


def test_defaults_learn_python_from_the_standard_library(tmp_path: Path) -> None:
    """Less than the 8 bits of any byte, in less than an epoch of the default model."""
    attempt = train(tmp_path / "a", {"steps_per_epoch": 20, "sample_bytes": 8}, total_epochs=2)
    first, last = (report["metrics"] for report in attempt.said("report"))
    assert set(last) == {"train_loss", "val_loss", "val_bits_per_byte", "lr"}
    assert last["val_bits_per_byte"] == pytest.approx(last["val_loss"] / math.log(2))
    assert last["val_bits_per_byte"] < first["val_bits_per_byte"] < 6
    lines = [line["message"] for line in attempt.said("log")]
    assert "bytes to train on" in lines[0]
    assert f"Epoch 2/2 - Loss: {last['train_loss']:.4f}" in lines
    assert len([line for line in lines if line.startswith("Sample: ")]) == 2
    assert [one["epoch"] for one in attempt.said("checkpoint")] == [1, 2]
    with safe_open(attempt.out / "model.safetensors", "pt") as model:
        config = json.loads(model.metadata()["epochcast"])["config"]
    assert (config["vocabulary"], config["layers"]) == ("bytes", 3)


def test_stopped_and_resumed_it_ends_with_the_same_model_bit_for_bit(tmp_path: Path, text: Path) -> None:
    chosen = {**SMALL, "text_dir": str(text), "accumulation_steps": 2}
    whole = train(tmp_path / "whole", chosen, total_epochs=5)

    with listening(tmp_path / "stopped", **told(chosen, total_epochs=5)) as stopped:
        process = stopped.start("-c", WAITS_FOR_STOP)
        wait_until(lambda: len(stopped.said("report")) >= 2, "two epochs", timeout_s=60)
        process.send_signal(signal.SIGTERM)
        code, output = finished(process)
        stopped.settle()
    assert code == 0, output
    trained = len(stopped.said("checkpoint"))
    assert 2 <= trained < 5

    resumed = train(tmp_path / "resumed", chosen, total_epochs=5, checkpoints=stopped.checkpoints())
    assert losses(resumed) == losses(whole)[trained:]
    assert (resumed.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_in_smaller_parts_the_losses_are_the_same(tmp_path: Path, text: Path) -> None:
    chosen = {**SMALL, "text_dir": str(text), "dropout": 0.0}
    one = train(tmp_path / "one", {**chosen, "micro_batch_size": 8, "accumulation_steps": 1})
    parts = train(tmp_path / "parts", {**chosen, "micro_batch_size": 2, "accumulation_steps": 4})
    assert losses(parts) == pytest.approx(losses(one), rel=1e-3)
    assert losses(one)[-1] < losses(one)[0]


def test_no_byte_sees_those_after_it() -> None:
    torch.manual_seed(0)
    model = lm.GPT({**lm.PARAMS, **SMALL}).eval()
    window = torch.randint(256, (1, 16))
    changed = window.clone()
    changed[0, 10:] += 1
    changed %= 256
    before, after = model(window), model(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10:], after[:, 10:])


def test_rotary_attention_knows_distances_only() -> None:
    cos, sin = lm.rotations(64, 8)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(at: int, seen: int) -> float:
        turned = lm.rotate(q, cos[at : at + 1], sin[at : at + 1]) * lm.rotate(
            k, cos[seen : seen + 1], sin[seen : seen + 1]
        )
        return float(turned.sum())

    assert score(9, 4) == pytest.approx(score(59, 54), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 8), abs=1e-4)


# --- Text


def params(**chosen: Any) -> dict[str, Any]:
    return recipes.validate("language-model", {"context": 16, **chosen})


def test_files_are_split_whole_the_same_way_for_a_seed(text: Path) -> None:
    whole = {path.read_bytes() for path in text.rglob("*.txt")}
    train_files, val_files = lm.split_files(text, params(text_dir=str(text), val_fraction=0.3), 0)
    assert len(val_files) == 3
    assert set(train_files) | set(val_files) == whole
    assert not set(train_files) & set(val_files)
    assert lm.split_files(text, params(text_dir=str(text), val_fraction=0.3), 0) == (train_files, val_files)
    assert lm.split_files(text, params(text_dir=str(text), val_fraction=0.3), 1) != (train_files, val_files)


def test_single_file_validates_on_its_end(text: Path) -> None:
    file = text / "5.txt"
    train_text, val_text = lm.load_text(params(text_file=str(file), val_fraction=0.25), 0)
    assert bytes(train_text) + bytes(val_text) == file.read_bytes()
    assert len(val_text) == round(0.25 * file.stat().st_size)


def test_what_is_no_text_and_what_is_hidden_is_left_out(text: Path) -> None:
    (text / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    (text / "zeros.bin").write_bytes(bytes(100))
    (text / ".secret").write_text("hidden")
    os.mkfifo(text / "pipe")
    names = {path.name for path in lm.files_in(text, only_python=False) if lm.read_text(path)}
    assert names == {f"{number}.txt" for number in range(10)}


@pytest.mark.parametrize(
    ("files", "chosen", "message"),
    [
        (None, {"text_dir": "@"}, "can't be read on this host: No such file or directory; name a folder there"),
        ({}, {"text_dir": "@"}, "holds 0 files of UTF-8 text, and at least two are needed"),
        ({"a": b"\xff" * 100, "b": b"x" * 100}, {"text_dir": "@"}, "holds 1 files of UTF-8 text"),
        ({"a": b"", "b": b""}, {"text_dir": "@"}, "holds 0 files"),
        ({"a": b"x" * 100, "b": b"y"}, {"text_dir": "@"}, "and a window of context 16 needs more"),
        ({}, {"text_file": "@/a"}, "a can't be read on this host: No such file or directory; name a text file there"),
        ({}, {"text_file": "@"}, "can't be read on this host: Is a directory"),
        ({"a": b"\xff"}, {"text_file": "@/a"}, "a is not UTF-8 text"),
        ({"a": b""}, {"text_file": "@/a"}, "gives 0 bytes for training"),
        ({"a": b"x" * 100}, {"text_file": "@/a"}, "gives 10 bytes for validation"),
    ],
)
def test_unusable_text_is_an_error_that_names_it(
    tmp_path: Path, files: dict[str, bytes] | None, chosen: dict[str, str], message: str
) -> None:
    folder = tmp_path / "text"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    paths = {name: path.replace("@", str(folder)) for name, path in chosen.items()}
    with pytest.raises(lm.DataError, match=re.escape(message)) as refusal:
        lm.load_text(params(**paths), 0)
    assert str(folder) in str(refusal.value)


def test_data_error_ends_a_job_as_a_user_error(tmp_path: Path) -> None:
    with listening(tmp_path / "a", **told({"text_file": str(tmp_path / "gone.txt")})) as attempt:
        code, _ = attempt.train()
        wait_until(lambda: attempt.said("failure"), "the failure")
    error = attempt.said("failure")[0]["error"]
    assert (code, error["type"]) == (1, "user_error")
    assert error["message"].startswith(f"DataError: {tmp_path}/gone.txt can't be read on this host: No such file")
