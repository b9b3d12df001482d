"""The training SDK: what a script says reaches the supervisor; models; the same script outside a job."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import epochcast
from epochcast.reporting import MAX_PACKET_BYTES
from epochcast.training import Disconnected, current_run
from tests.epochcast.training_run import Begin, packet
from tests.listening import CHECKOUT, finished, listening

# --- Reports


def test_report_reaches_the_supervisor_as_one_packet(begin: Begin) -> None:
    run, attempt = begin(params={"lr": 0.1})
    run.report(epoch=1, train_loss=torch.tensor(0.5), accuracy=np.float32(0.25), count=3, step=7)
    said = packet(attempt, "report")
    assert said["metrics"] == {"train_loss": 0.5, "accuracy": 0.25, "count": 3.0}
    assert (said["rank"], said["epoch"], said["step"], said["non_finite"]) == (0, 1, 7, [])
    assert run.params == {"lr": 0.1}


def test_nan_and_infinity_become_null_and_are_named(begin: Begin) -> None:
    run, attempt = begin()
    run.report(epoch=1, train_loss=math.nan, val_loss=torch.tensor(math.inf), huge=10**400, lr=0.1)
    said = packet(attempt, "report")
    assert said["metrics"] == {"train_loss": None, "val_loss": None, "huge": None, "lr": 0.1}
    assert said["non_finite"] == ["train_loss", "val_loss", "huge"]


@pytest.mark.parametrize("value", ["0.5", None, torch.zeros(2), [1.0], object(), 1j])
def test_metric_that_is_no_number_is_named(begin: Begin, value: object) -> None:
    run, _ = begin()
    with pytest.raises(TypeError, match=r"metric 'train_loss' is .*report numbers"):
        run.report(epoch=1, train_loss=value)


def test_report_too_large_for_a_packet_is_refused(begin: Begin) -> None:
    run, attempt = begin()
    many: dict[str, Any] = {f"metric_{number:05}": 1.0 for number in range(5000)}
    with pytest.raises(ValueError, match=f"at most {MAX_PACKET_BYTES} fit"):
        run.report(epoch=1, **many)
    run.report(epoch=1, loss=1.0)
    assert packet(attempt, "report")["metrics"] == {"loss": 1.0}


@pytest.mark.parametrize("message", ["\x00" * 100_000, "😀" * 50_000, "\ud800" * 10_000, "short"])
def test_log_line_of_any_content_fits_a_packet(begin: Begin, message: str) -> None:
    run, attempt = begin()
    run.log(message, level="WARNING")
    said = packet(attempt, "log")
    assert said["level"] == "WARNING"
    assert len(said["message"].encode()) <= 8 * 1024


def test_report_raises_when_the_supervisor_is_gone(begin: Begin) -> None:
    run, attempt = begin()
    run.report(epoch=1, loss=1.0)
    packet(attempt, "report")
    attempt.hang_up()
    with pytest.raises(Disconnected, match="supervisor is gone"):
        run.report(epoch=2, loss=1.0)


def test_init_raises_when_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(tmp_path / "a") as attempt:
        for name, value in attempt.environment.items():
            monkeypatch.setenv(name, value)
    with pytest.raises(Disconnected, match="can't reach the supervisor"):
        epochcast.init()


def test_job_decides_over_the_scripts_defaults(begin: Begin) -> None:
    begin(params={"lr": 0.1})
    run = epochcast.init({"lr": 0.5, "width": 8}, total_epochs=99)
    assert run is current_run()
    assert run.total_epochs == 3


# --- Models


def test_model_is_saved_as_safetensors_with_shared_and_strided_weights(begin: Begin) -> None:
    run, attempt = begin(recipe="test-recipe", params={"lr": 0.1})
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[0].bias = torch.nn.Parameter(torch.arange(4.0))
    model.append(torch.nn.Linear(2, 4))
    model[2].weight = torch.nn.Parameter(torch.arange(8.0).view(2, 4).t())
    run.save_model(model, {"val_loss": 0.5, "train_loss": math.nan}, config={"layers": 2})
    said = packet(attempt, "model")
    assert (said["file"], said["metrics"]) == ("model.safetensors", {"val_loss": 0.5, "train_loss": None})
    file = attempt.out / said["file"]
    assert torch.equal(load_file(file)["0.bias"], torch.arange(4.0))
    assert torch.equal(load_file(file)["2.weight"], torch.arange(8.0).view(2, 4).t())
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    about = json.loads(header["__metadata__"]["epochcast"])
    assert (about["recipe"], about["params"], about["config"]) == ("test-recipe", {"lr": 0.1}, {"layers": 2})


def test_model_is_saved_without_the_name_of_its_wrapper(begin: Begin) -> None:
    run, attempt = begin()
    run.save_model(torch.compile(torch.nn.Linear(1, 1)))  # type: ignore[arg-type]
    packet(attempt, "model")
    assert set(load_file(attempt.out / "model.safetensors")) == {"weight", "bias"}


@pytest.mark.parametrize("name", ["../model", "a/b", ".hidden", ""])
def test_model_name_that_leaves_the_folder_is_refused(begin: Begin, name: str) -> None:
    run, _ = begin()
    with pytest.raises(ValueError, match="is not a plain file name"):
        run.save_model(torch.nn.Linear(1, 1), name=name)


# --- Outside a job

SCRIPT = """
import os, sys
import torch, epochcast
run = epochcast.init({"lr": 0.1}, total_epochs=3)
model = torch.nn.Linear(2, 2)
run.state(model=model)
print("resumed", run.resume())
for epoch in run.epochs():
    run.report(epoch=epoch, train_loss=1 / epoch)
    run.checkpoint()
    if epoch == int(sys.argv[1]):
        sys.exit(3)
run.save_model(model, {"train_loss": 0.5})
"""


def test_script_runs_unchanged_on_a_laptop_and_resumes_only_what_was_interrupted(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)

    def execute(last_epoch: str) -> tuple[int, str]:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT)}
        command = [sys.executable, "train.py", last_epoch]
        return finished(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )

    code, output = execute("2")
    assert (code, "resumed False" in output) == (3, True), output
    assert "epoch 2/3 train_loss=0.5" in output
    code, output = execute("99")
    assert (code, "resumed True" in output, "epoch 2/3 train" in output) == (0, True, False), output
    assert "[model] model.safetensors" in output
    kept = sorted(file.name for file in (tmp_path / "epochcast-run").iterdir())
    assert kept == ["ckpt-000002.pt", "ckpt-000003.pt", "model.safetensors"]
    code, output = execute("99")
    assert (code, "resumed False" in output, "epoch 1/3" in output) == (0, True, True), output


def test_import_brings_neither_torch_nor_pydantic() -> None:
    code = "import sys, epochcast; epochcast.init; print({'torch', 'pydantic', 'numpy', 'httpx2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_socket_below_a_folder_of_any_depth_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with listening(deep) as attempt:
        for name, value in attempt.environment.items():
            monkeypatch.setenv(name, value)
        run = epochcast.init()
        run.log("here")
        packet(attempt, "log")
        run.close()
    signal.signal(signal.SIGTERM, on_sigterm)
    assert isinstance(attempt.listener, socket.socket)
