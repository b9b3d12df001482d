"""The training SDK: what a script says reaches the supervisor, checkpoints bring it back, a stop ends it in order."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import epochcast
from epochcast.reporting import MAX_PACKET_BYTES
from epochcast.training import Disconnected, Run, current_run
from tests.listening import CHECKOUT, Attempt, finished, listening
from tests.waiting import wait_until

Begin = Callable[..., tuple[Run, Attempt]]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Starts a run of this process under a listening supervisor; called again, the job's next attempt."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    opened: list[AbstractContextManager[Attempt]] = []

    def start(**told: Any) -> tuple[Run, Attempt]:
        if (earlier := current_run()) is not None:
            earlier.close()
        folder = tmp_path / f"attempt-{len(opened)}"
        opened.append(listening(folder, **told))
        attempt = opened[-1].__enter__()
        for name, value in attempt.environment.items():
            monkeypatch.setenv(name, value)
        return epochcast.init(), attempt

    yield start
    if (last := current_run()) is not None:
        last.close()
    for context in reversed(opened):
        context.__exit__(None, None, None)
    signal.signal(signal.SIGTERM, on_sigterm)


def packet(attempt: Attempt, kind: str, count: int = 1) -> dict[str, Any]:
    """The `count`th packet of this kind, once it has come."""
    wait_until(lambda: len(attempt.said(kind)) >= count, f"{kind} packet {count}")
    return attempt.said(kind)[count - 1]


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Walk:
    """A model of one number: it drifts with every batch, by randomness of all three kinds."""

    def __init__(self) -> None:
        self.place = torch.zeros(1, dtype=torch.float64)

    def step(self, batch: torch.Tensor) -> None:
        import random

        self.place = self.place * 1.1 + batch.sum() + torch.rand(1).double() + random.random() + np.random.rand()

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def loader() -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(10.0)), batch_size=2, shuffle=True)


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


# --- Epochs, checkpoints, resume


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


# --- Stop


def test_stop_between_epochs_checkpoints_the_state_and_ends(begin: Begin) -> None:
    run, attempt = begin()
    run.state(walk=Walk())
    trained = []
    for epoch in run.epochs():
        trained.append(epoch)
        stop()
        assert run.stopping
    assert trained == [1]
    assert not run.finished
    assert packet(attempt, "checkpoint")["epoch"] == 1


def test_stop_does_not_checkpoint_an_epoch_twice(begin: Begin) -> None:
    run, attempt = begin()
    run.state(walk=Walk())
    for _ in run.epochs():
        stop()
        run.checkpoint()
    run.log("end")
    packet(attempt, "log")
    assert len(attempt.said("checkpoint")) == 1


def test_epoch_cut_short_is_neither_reported_nor_checkpointed(begin: Begin) -> None:
    run, attempt = begin()
    walk = Walk()
    run.state(walk=walk)
    steps = 0
    for epoch in run.epochs():
        for (batch,) in run.batches(loader()):
            walk.step(batch)
            steps += 1
            if steps == 7:
                stop()
        run.report(epoch=epoch, loss=1.0)
        run.checkpoint()
    assert steps == 7
    assert "epoch 2 after 2 batches" in packet(attempt, "log")["message"]
    assert [said["epoch"] for said in attempt.said("report")] == [1]
    assert [said["epoch"] for said in attempt.said("checkpoint")] == [1]
    assert [said["epoch"] for said in attempt.said("epoch")] == [0, 1]


def test_stop_in_the_last_step_of_an_epoch_ends_it_whole(begin: Begin) -> None:
    run, attempt = begin()
    run.state(walk=Walk())
    for epoch in run.epochs():
        for number, _ in enumerate(run.batches(loader()), 1):
            if number == 5:
                stop()
        run.report(epoch=epoch, loss=1.0)
    assert packet(attempt, "checkpoint")["epoch"] == 1
    assert attempt.said("report")[0]["epoch"] == 1


def test_script_that_checkpoints_inside_epochs_resumes_at_the_next_batch_bit_for_bit(begin: Begin) -> None:
    def train(told: dict[str, Any], stop_at: int | None) -> tuple[Walk, int, Attempt]:
        run, attempt = begin(**told)
        walk, steps = Walk(), 0
        run.state(walk=walk)
        run.resume()
        for _ in run.epochs():
            for (batch,) in run.batches(loader()):
                walk.step(batch)
                steps += 1
                if steps == stop_at:
                    stop()
                if run.step == 1:
                    run.checkpoint()
        run.log("end")
        wait_until(lambda: "end" in [said["message"] for said in attempt.said("log")], "the end")
        return walk, steps, attempt

    whole, _, _ = train({}, None)
    _, _, stopped = train({}, 8)
    assert [(said["epoch"], said["step"]) for said in stopped.said("checkpoint")] == [(1, 1), (2, 1), (2, 3)]
    resumed, steps, _ = train({"checkpoints": stopped.checkpoints()}, None)
    assert steps == 2 + 5
    assert torch.equal(whole.place, resumed.place)


def test_forked_helper_of_a_script_still_dies_of_sigterm(begin: Begin) -> None:
    begin()
    ready, says_ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(says_ready, b"!")  # Python forgets signals that come between the fork and its own clean-up after it
        while True:
            pass
    os.read(ready, 1)
    os.close(ready)
    os.close(says_ready)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_init_in_another_thread_leaves_signals_alone(begin: Begin) -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


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
