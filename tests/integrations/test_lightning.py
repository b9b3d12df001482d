"""Lightning's own scripts report their epochs, by one line or by none, and end in order when a stop is asked."""

import signal
import subprocess
import sys

import pytest

from tests.integrations.conftest import SCRIPTS, Train, epochs
from tests.listening import Attempt
from tests.waiting import wait_until

BORING = (SCRIPTS / "lightning_boring.py").read_text()


@pytest.mark.parametrize("package", ["lightning", "pytorch_lightning"])
def test_unmodified_script_reports_every_epoch_with_all_it_logs(train: Train, package: str) -> None:
    code, output, attempt = train(BORING.replace("import lightning as L", f"import {package} as L"), total_epochs=1)
    assert code == 0, output
    assert [epoch for epoch, _ in epochs(attempt)] == [1, 2, 3]
    for _, metrics in epochs(attempt):
        assert metrics.keys() == {"train_loss", "val_loss", "weight"}
    assert epochs(attempt)[2][1]["val_loss"] < epochs(attempt)[0][1]["val_loss"]
    assert attempt.said("epoch")[0] == {"type": "epoch", "rank": 0, "epoch": 0, "total_epochs": 3}


@pytest.mark.parametrize("before", ["", "import epochcast\nrun = epochcast.init()\n"])
def test_one_line_does_the_same_and_nothing_twice(train: Train, before: str) -> None:
    script = before + BORING.replace(
        "L.Trainer(",
        "L.Trainer(callbacks=[__import__('epochcast.integrations.lightning', fromlist=['x']).EpochcastCallback()], ",
    )
    code, output, attempt = train(script)
    assert code == 0, output
    assert [packet["epoch"] for packet in attempt.said("epoch")] == [0, 1, 2, 3]
    assert [epoch for epoch, _ in epochs(attempt)] == [1, 2, 3]


def test_trainer_can_still_be_sent_to_processes_it_spawns(train: Train) -> None:
    code, output, attempt = train(BORING + "\nimport pickle\nprint(len(pickle.loads(pickle.dumps(trainer.callbacks))))")
    assert code == 0, output
    assert int(output.splitlines()[-1]) >= 2
    assert [epoch for epoch, _ in epochs(attempt)] == [1, 2, 3]


def test_early_stopping_ends_the_story_where_it_ends_the_training(train: Train) -> None:
    stopping = "L.pytorch.callbacks.EarlyStopping('val_loss', patience=0, min_delta=1e9)"
    code, output, attempt = train(BORING.replace("L.Trainer(", f"L.Trainer(callbacks=[{stopping}], "))
    assert code == 0, output
    assert [epoch for epoch, _ in epochs(attempt)] == [1, 2]


def test_randomness_is_the_scripts_own(train: Train) -> None:
    _, inside, attempt = train(BORING)
    by_hand = subprocess.run(
        [sys.executable, SCRIPTS / "lightning_boring.py"],
        cwd=attempt.folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert drawn(inside) == drawn(by_hand.stdout)


def drawn(output: str) -> list[str]:
    found = [line for line in output.splitlines() if line.startswith("drawn")]
    assert len(found) == 1, output
    return found


ENDLESS = BORING.replace("max_epochs=3", "max_epochs=100000") + "\nprint('saved the model')\n"


def test_stop_ends_the_fit_and_the_script_goes_on_to_its_end(train: Train) -> None:
    def during(attempt: Attempt, process: "subprocess.Popen[str]") -> None:
        wait_until(lambda: len(epochs(attempt)) >= 2, "two epochs", timeout_s=60)
        process.send_signal(signal.SIGTERM)

    code, output, attempt = train(ENDLESS, during=during)
    assert code == 0, output
    assert "saved the model" in output
    over = [epoch for epoch, _ in epochs(attempt)]
    assert over == list(range(1, len(over) + 1))


def test_script_that_calls_init_reports_itself(train: Train) -> None:
    code, output, attempt = train("import epochcast\nrun = epochcast.init()\n" + BORING)
    assert code == 0, output
    assert attempt.packets == []


def test_max_steps_inside_an_epoch_end_with_that_epoch(train: Train) -> None:
    code, output, attempt = train(BORING.replace("max_epochs=3", "max_steps=6"))
    assert code == 0, output
    assert attempt.said("epoch")[0]["total_epochs"] == 2
    assert [epoch for epoch, _ in epochs(attempt)] == [1, 2]
