"""The examples run as they are: as jobs on the real platform, the notebook in a real kernel, and by hand."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import epochcast
from epochcast.jobs import Status
from tests.markdown import CHECKOUT
from tests.platform import Platform

EXAMPLES = CHECKOUT / "examples"
# No test asks a server on the network.
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
METRICS = {
    "own-script": {"train_loss", "val_accuracy"},
    "lightning": {"train_loss", "val_loss", "val_accuracy"},
    "transformers": {"loss", "val_loss"},
    "accelerate": {"train_loss", "val_accuracy"},
}


def test_every_example_is_tested_and_no_other() -> None:
    # The notebook below, the React component in tests/dashboard.
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} == METRICS.keys() | {"notebook", "react"}


@pytest.mark.parametrize("name", METRICS)
def test_an_example_is_a_job_whose_epochs_are_seen_and_whose_model_is_kept(name: str, platform: Platform) -> None:
    with epochcast.Client(platform.url) as client:
        job = client.submit(EXAMPLES / name / "train.py", args=["--lr", "0.01"], total_epochs=2, env=OFFLINE)
        epochs = {}
        for message in job.watch():
            if message.type == "progress" and message.current_epoch:
                epochs[message.current_epoch] = message.metrics
        ended = job.refreshed()
        log = "\n".join(line.message for line in job.logs())
        assert ended.status is Status.SUCCEEDED, f"{ended.error_message}\n{log}"
        assert set(epochs) == {1, 2}
        assert METRICS[name] <= epochs[2].keys()
        assert job.result().bytes > 0


@pytest.mark.parametrize("name", METRICS)
def test_an_example_runs_by_hand_without_a_platform(name: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **OFFLINE}
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / name / "train.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert ran.returncode == 0, ran.stderr
    assert "[report] epoch 2/" in ran.stdout
    assert (tmp_path / "epochcast-run" / "model.safetensors").is_file()


@pytest.fixture
def outputs(platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the notebook's cells gave, run from top to bottom."""
    monkeypatch.setenv("EPOCHCAST_URL", platform.url)
    notebook = nbformat.reads((EXAMPLES / "notebook" / "digits.ipynb").read_text(), as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=150, kernel_name="python3", resources=resources).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_the_notebook_runs_and_shows_its_jobs_live(outputs: list[Any], tmp_path: Path) -> None:
    pictures = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(pictures) >= 2
    assert all("succeeded" in picture for picture in pictures)
    assert [output for output in outputs if output.output_type in ("error", "stream")] == []
    assert (tmp_path / "digits.safetensors").stat().st_size > 0
