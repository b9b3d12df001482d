"""Scalars that a script writes with SummaryWriter become its job's epochs, without a line of ours in it."""

import subprocess
import sys

import pytest

from epochcast.integrations.link import metric_name
from tests.integrations.conftest import Train, epochs
from tests.listening import Attempt
from tests.waiting import wait_until

WRITERS = ("torch.utils.tensorboard", "tensorboardX")


def test_tutorial_script_reports_each_epoch_once_with_its_losses(train: Train) -> None:
    code, output, attempt = train("tensorboard_tutorial.py", total_epochs=4)
    assert code == 0, output
    assert [epoch for epoch, _ in epochs(attempt)] == [1, 2, 3, 4]
    for _, metrics in epochs(attempt):
        assert metrics.keys() == {"Loss/batch", "train_loss", "val_loss"}
    assert epochs(attempt)[3][1]["val_loss"] < epochs(attempt)[0][1]["val_loss"]
    assert any((attempt.folder / "runs/linear").iterdir())  # the writer has written as ever


def by_batch(body: str, writer: str = WRITERS[0]) -> str:
    return f"from {writer} import SummaryWriter\nwriter = SummaryWriter('runs')\n{body}\nwriter.close()\n"


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("first", [0, 1])
def test_epochs_count_from_one_however_the_script_counts(train: Train, writer: str, first: int) -> None:
    body = f"for epoch in range({first}, {first} + 3):\n    writer.add_scalar('loss', 1.0 / (epoch + 1), epoch)"
    code, output, attempt = train(by_batch(body, writer))
    assert code == 0, output
    assert epochs(attempt) == [(number, {"loss": 1.0 / (number + first)}) for number in (1, 2, 3)]


def test_batches_count_as_no_epochs(train: Train) -> None:
    body = """
step = 0
for epoch in range(2):
    for batch in range(50):
        writer.add_scalar('train/loss', 100.0 - step, global_step=step)
        step += 1
"""
    code, output, attempt = train(by_batch(body), total_epochs=2)
    assert code == 0, output
    assert epochs(attempt) == [(1, {"train_loss": 51.0}), (2, {"train_loss": 1.0})]
    assert attempt.said("report")[0]["step"] == 0


def test_steps_without_an_epoch_are_history_only(train: Train) -> None:
    code, output, attempt = train(by_batch("for i in range(5): writer.add_scalar('loss', 1.0, i)"), total_epochs=5)
    assert code == 0, output
    assert epochs(attempt) == []
    assert {packet["epoch"] for packet in attempt.said("report")} == {0}


def test_second_epoch_is_reported_with_its_last_scalar_not_with_the_third(train: Train) -> None:
    body = """
import pathlib, time
for epoch in range(2):
    writer.add_scalar('Loss/train', 1.0, epoch)
    writer.add_scalar('Loss/val', 2.0, epoch)
while not pathlib.Path('go').exists():
    time.sleep(0.01)
"""

    def during(attempt: Attempt, process: "subprocess.Popen[str]") -> None:
        wait_until(lambda: len(epochs(attempt)) == 2, "the second epoch while the script still runs", timeout_s=60)
        (attempt.folder / "go").touch()

    code, output, attempt = train(by_batch(body), during=during)
    assert code == 0, output
    assert epochs(attempt) == [(number, {"train_loss": 1.0, "val_loss": 2.0}) for number in (1, 2)]


def test_more_epochs_than_submitted_raise_the_total(train: Train) -> None:
    _, output, attempt = train(by_batch("for epoch in range(3): writer.add_scalar('loss', 1.0, epoch)"), total_epochs=1)
    assert [packet["total_epochs"] for packet in attempt.said("epoch")] == [None, None, 2, 3], output


def test_epoch_that_an_exception_broke_off_is_not_reported(train: Train) -> None:
    body = """
for epoch in range(3):
    for batch in range(4):
        writer.add_scalar('loss', 1.0, epoch * 4 + batch)
        if epoch == 1:
            raise ValueError("no more data")
"""
    code, _, attempt = train(by_batch(body))
    assert code == 1
    assert [epoch for epoch, _ in epochs(attempt)] == [1]
    assert attempt.packets[-1]["type"] == "failure"


def test_attribute_of_a_trainer_class_is_the_epoch_too(train: Train) -> None:
    body = """
class MyTrainer:
    def fit(self):
        for self.epoch in range(2):
            self.log('loss', 0.5)
    def log(self, tag, value):
        writer.add_scalar(tag, value)
MyTrainer().fit()
"""
    _, output, attempt = train(by_batch(body))
    assert epochs(attempt) == [(1, {"loss": 0.5}), (2, {"loss": 0.5})], output


def test_two_writers_with_the_same_tag_are_told_apart(train: Train) -> None:
    body = """
training, validating = SummaryWriter('runs/train'), SummaryWriter('runs/val')
for epoch in range(2):
    training.add_scalar('loss', 1.0, epoch)
    validating.add_scalar('loss', 2.0, epoch)
    writer.add_scalars('acc', {'train': 0.5, 'val': 0.25}, epoch)
"""
    _, output, attempt = train(by_batch(body))
    expected = {"loss": 1.0, "val_loss": 2.0, "acc/train": 0.5, "acc/val": 0.25}
    assert epochs(attempt) == [(1, expected), (2, expected)], output


def test_values_of_every_kind_are_written_and_numbers_are_reported(train: Train) -> None:
    body = """
import numpy, torch
for epoch in range(1):
    writer.add_scalar('tensor', torch.tensor(1.5), epoch)
    writer.add_scalar('array', numpy.float32(2.5), epoch, new_style=True)
    writer.add_scalar(tag='nan', scalar_value=float('nan'), global_step=epoch, walltime=1.0)
"""
    code, output, attempt = train(by_batch(body))
    assert code == 0, output
    assert epochs(attempt) == [(1, {"tensor": 1.5, "array": 2.5, "nan": None})]
    assert attempt.said("report")[-1]["non_finite"] == ["nan"]


def test_lost_supervisor_stops_no_writer(train: Train) -> None:
    body = """
import os
os.environ['EPOCHCAST_SOCKET'] = '/nonexistent/socket'
for epoch in range(3): writer.add_scalar('loss', 1.0, epoch)
print('trained to the end')
"""
    code, output, _ = train(by_batch(body))
    assert code == 0
    assert "trained to the end" in output
    assert output.count("epochcast:") == 1


def test_script_that_calls_init_reports_itself(train: Train) -> None:
    body = """
import epochcast
run = epochcast.init()
for epoch in run.epochs():
    writer.add_scalar('loss', 5.0, epoch)
    run.report(epoch=epoch, loss=1.0)
"""
    code, output, attempt = train(by_batch(body), total_epochs=2)
    assert code == 0, output
    assert [packet["metrics"] for packet in attempt.said("report")] == [{"loss": 1.0}, {"loss": 1.0}]


def test_nothing_is_imported_for_a_script_that_uses_none_of_them(train: Train) -> None:
    names = ("torch.utils.tensorboard", "tensorboard", "tensorboardX", "lightning", "transformers")
    code, output, attempt = train(f"import sys; print([name for name in {names} if name in sys.modules])")
    assert (code, output.strip()) == (0, "[]")
    assert attempt.packets == []


def test_observing_costs_no_import() -> None:
    heavy = ("torch", "pydantic", "numpy", "tensorboard")
    script = f"import epochcast.integrations as i, sys; i.observe(); print([n for n in {heavy} if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("Loss/train", "train_loss"), ("train/loss", "train_loss"), ("training loss", "train_loss"),
        ("Loss/valid", "val_loss"), ("eval_loss", "val_loss"), ("Loss", "loss"), ("loss/gan", "loss/gan"),
        ("Accuracy/train", "Accuracy/train"),
    ],
)  # fmt: skip
def test_losses_get_the_names_the_platform_knows(tag: str, name: str) -> None:
    assert metric_name(tag) == name
