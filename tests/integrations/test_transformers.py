"""transformers.Trainer reports its epochs, by one line or by none, and ends in order when a stop is asked."""

import signal
import subprocess

from tests.integrations.conftest import SCRIPTS, Train, epochs
from tests.listening import Attempt
from tests.waiting import wait_until

TINY = (SCRIPTS / "transformers_tiny.py").read_text()


def test_unmodified_script_reports_every_epoch_with_both_losses(train: Train) -> None:
    code, output, attempt = train(TINY, total_epochs=1)
    assert code == 0, output
    assert [epoch for epoch, _ in epochs(attempt)] == [1, 2, 3]
    for _, metrics in epochs(attempt):
        assert {"loss", "val_loss", "learning_rate"} <= metrics.keys()
        assert not any("runtime" in name or "per_second" in name for name in metrics)
    assert epochs(attempt)[2][1]["loss"] < epochs(attempt)[0][1]["loss"]
    assert attempt.said("epoch")[0] == {"type": "epoch", "rank": 0, "epoch": 0, "total_epochs": 3}


def test_logs_by_step_are_history(train: Train) -> None:
    code, output, attempt = train(TINY.replace('output_dir="out"', 'output_dir="out", logging_steps=1'))
    assert code == 0, output
    steps = [packet for packet in attempt.said("report") if packet["step"] is not None]
    losses = [(packet["epoch"], packet["step"]) for packet in steps if "loss" in packet["metrics"]]
    assert losses[:5] == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 5)]
    assert [epoch for epoch, _ in epochs(attempt)] == [1, 2, 3]


def test_max_steps_inside_an_epoch_end_with_that_epoch(train: Train) -> None:
    code, output, attempt = train(TINY.replace('output_dir="out"', 'output_dir="out", max_steps=6'))
    assert code == 0, output
    assert attempt.said("epoch")[0]["total_epochs"] == 2
    assert [epoch for epoch, _ in epochs(attempt)] == [1, 2]


def test_one_line_does_the_same_and_nothing_twice(train: Train) -> None:
    line = "callbacks=[EpochcastTrainerCallback()]"
    script = TINY.replace("Trainer(model=model", f"Trainer({line}, model=model").replace(
        "import torch\n", "import torch\nfrom epochcast.integrations.transformers import EpochcastTrainerCallback\n", 1
    )
    code, output, attempt = train(script)
    assert code == 0, output
    assert [packet["epoch"] for packet in attempt.said("epoch")] == [0, 1, 2, 3]


def test_stop_ends_the_training_and_the_script_goes_on_to_its_end(train: Train) -> None:
    def during(attempt: Attempt, process: "subprocess.Popen[str]") -> None:
        wait_until(lambda: len(epochs(attempt)) >= 2, "two epochs", timeout_s=90)
        process.send_signal(signal.SIGTERM)

    script = TINY.replace("num_train_epochs=3", "num_train_epochs=100000") + "\nprint('saved the model')\n"
    code, output, attempt = train(script, during=during)
    assert code == 0, output
    assert "saved the model" in output
    over = [epoch for epoch, _ in epochs(attempt)]
    assert over == list(range(1, len(over) + 1))


def test_script_that_calls_init_reports_itself(train: Train) -> None:
    code, output, attempt = train("import epochcast\nrun = epochcast.init()\n" + TINY)
    assert code == 0, output
    assert attempt.packets == []
