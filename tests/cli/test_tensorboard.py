"""`epochcast tensorboard`: the files, read by TensorBoard's own reader, and TensorBoard itself over them."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from epochcast.cli import run
from epochcast.event_files import EventFile
from tests.cli.test_terminal import CLI, environment
from tests.epochcast.scripted import ScriptedGateway, job, message, says, stays
from tests.waiting import wait_until

PAGES = {"/api/v1/training-jobs/42": [job()]}


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a tag: steps and values."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(point.step, round(point.value, 4)) for point in accumulator.Scalars(tag)]


def epoch(seq: int, number: int, loss: float, **fields: Any) -> dict[str, Any]:
    return message(seq, current_epoch=number, metrics={"train_loss": loss}, **fields)


def written(tmp_path: Path, *arguments: str) -> list[str]:
    return ["tensorboard", *arguments, "--logdir", str(tmp_path / "runs"), "--only-files"]


def test_every_epoch_is_read_back_once_with_the_time_at_which_it_was_reported(tmp_path: Path) -> None:
    play = says(
        epoch(1, 0, 9.0),
        epoch(2, 1, 1.0),
        message(3, "log"),
        epoch(4, 2, 0.5, timestamp="2025-01-07T10:16:00Z"),
        epoch(5, 2, 0.5, status="running"),
        message(6, "complete", current_epoch=2, final_metrics={"train_loss": 0.5, "accuracy": 0.75}),
    )
    with ScriptedGateway(play, pages=PAGES) as gateway:
        assert run([*written(tmp_path, "42"), "--url", gateway.url]) == 0
        assert gateway.afters() == ["0-0"]
    folder = tmp_path / "runs" / "42-digits"
    assert curve(folder, "train_loss") == [(1, 1.0), (2, 0.5)]
    assert curve(folder, "accuracy") == [(2, 0.75)]
    accumulator = EventAccumulator(str(folder)).Reload()
    assert [point.wall_time for point in accumulator.Scalars("train_loss")] == [1736244900.0, 1736244960.0]


def test_epochs_that_a_resumed_attempt_trains_again_replace_the_first_ones(tmp_path: Path) -> None:
    play = says(
        epoch(1, 1, 1.0),
        epoch(2, 2, 0.9),
        epoch(3, 3, 0.8),
        epoch(1, 2, 0.7, generation=2),
        epoch(2, 3, 0.6, generation=2),
        message(3, "complete", generation=2, current_epoch=3, final_metrics={}),
    )
    with ScriptedGateway(play, pages=PAGES) as gateway:
        assert run([*written(tmp_path, "42"), "--url", gateway.url]) == 0
    assert curve(tmp_path / "runs" / "42-digits", "train_loss") == [(1, 1.0), (2, 0.7), (3, 0.6)]


def test_what_the_event_log_has_lost_comes_from_the_metrics_history(tmp_path: Path) -> None:
    history = {"epoch": [1, 2, 3], "train_loss": [1.0, None, 0.8]}
    pages = {**PAGES, "/api/v1/training-jobs/42/metrics": [history]}
    play = says(
        epoch(3, 3, 0.8, resync=True), epoch(4, 4, 0.7), message(5, "complete", current_epoch=4, final_metrics={})
    )
    with ScriptedGateway(play, pages=pages) as gateway:
        assert run([*written(tmp_path, "42"), "--url", gateway.url]) == 0
    assert curve(tmp_path / "runs" / "42-digits", "train_loss") == [(1, 1.0), (3, 0.8), (4, 0.7)]


def test_written_again_a_jobs_curves_begin_anew_and_other_files_stay(tmp_path: Path) -> None:
    other = tmp_path / "runs" / "42-digits" / "events.out.tfevents.1.host"
    for _ in range(2):
        with ScriptedGateway(says(epoch(1, 1, 1.0), message(2, "complete")), pages=PAGES) as gateway:
            assert run([*written(tmp_path, "42"), "--url", gateway.url]) == 0
        other.touch()
    assert len(list(other.parent.iterdir())) == 2


@pytest.mark.parametrize("value", [0.1, -3.5, 1e300, -1e300, 0.0, 1e-50])
def test_any_number_is_read_back_as_32_bits_hold_it(tmp_path: Path, value: float) -> None:
    with EventFile(tmp_path) as file:
        file.add(2**40, {"näme/with ünicode": value}, 1.5)
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    (point,) = accumulator.Scalars("näme/with ünicode")
    clipped = float("inf") if value > 1e38 else float("-inf") if value < -1e38 else value
    assert (point.step, point.wall_time, point.value) == (2**40, 1.5, pytest.approx(clipped))


def test_an_unknown_job_exits_3_and_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedGateway(says(), pages=PAGES) as gateway:
        assert run([*written(tmp_path, "42", "43"), "--url", gateway.url]) == 3
    assert not (tmp_path / "runs").exists()


def test_tensorboard_serves_the_live_curves_until_ctrl_c_which_ends_it(tmp_path: Path) -> None:
    with ScriptedGateway(stays(epoch(1, 1, 1.0), epoch(2, 2, 0.5)), pages=PAGES) as gateway:
        following = subprocess.Popen(
            [*CLI, "tensorboard", "42", "--logdir", str(tmp_path), "--json", "--url", gateway.url],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert following.stdout is not None
        told = json.loads(following.stdout.readline())
        address = f"{told['url']}data/plugin/scalars/scalars?run=42-digits&tag=train_loss"
        seen: list[tuple[int, float]] = []

        def shows_both() -> bool:
            assert following.poll() is None
            try:
                with urllib.request.urlopen(address, timeout=30) as response:
                    seen[:] = [(step, value) for _, step, value in json.loads(response.read())]
            except OSError:  # not up yet, or the run isn't loaded
                return False
            return len(seen) == 2

        try:
            wait_until(shows_both, "both epochs in TensorBoard", timeout_s=90)
        finally:
            following.send_signal(signal.SIGINT)
            _, err = following.communicate(timeout=60)
    assert seen == [(1, 1.0), (2, 0.5)]
    assert following.returncode == 130
    assert "the jobs keep running" in err


def test_without_tensorboard_the_files_are_there_and_it_says_what_to_install(tmp_path: Path) -> None:
    """In a Python that sees no TensorBoard: a finder in front says so."""
    hide = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'tensorboard' else find(name, *more)\n"
        "from epochcast.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    play = says(epoch(1, 1, 1.0), message(2, "complete", current_epoch=1, final_metrics={}))
    with ScriptedGateway(play, pages=PAGES) as gateway:
        ended = subprocess.run(
            [sys.executable, "-c", hide, "tensorboard", "42", "--logdir", str(tmp_path), "--url", gateway.url],
            env=environment(PATH="/nowhere"),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 0, ended.stderr
    assert "pip install 'epochcast[tensorboard]'" in ended.stdout
    assert curve(tmp_path / "42-digits", "train_loss") == [(1, 1.0)]
