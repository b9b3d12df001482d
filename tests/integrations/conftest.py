"""Runs scripts that import nothing of epochcast as a job's own, under a listening supervisor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.listening import Attempt, finished, listening

Train = Callable[..., tuple[int, str, Attempt]]
SCRIPTS = Path(__file__).parent / "scripts"
# Their caches and logs belong into the attempt's folder, and no test asks a server on the network.
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Trains a script (its text, or the name of one in `scripts/`) through `worker/trainer.py` to its end.

    `during(attempt, process)` is called while it runs.
    """

    def run(script: str, during: Callable[..., None] | None = None, **told: Any) -> tuple[int, str, Attempt]:
        text = (SCRIPTS / script).read_text() if script.endswith(".py") else script
        path = tmp_path / "attempt/train.py"
        with listening(path.parent, script=str(path), **told) as attempt:
            path.write_text(text)
            process = attempt.start_warm("-m", "worker.trainer", HOME=str(tmp_path), **OFFLINE)
            try:
                if during is not None:
                    during(attempt, process)
                code, output = finished(process)
            finally:
                process.kill()
                process.wait()
            attempt.settle()
        return code, output, attempt

    return run


def epochs(attempt: Attempt) -> list[tuple[int, dict[str, float]]]:
    """Each epoch that was said to be over, with what was reported of it until then."""
    over: list[tuple[int, dict[str, float]]] = []
    metrics: dict[int, dict[str, float]] = {}
    for packet in attempt.packets:
        if packet["type"] == "report" and packet["step"] is None:
            metrics.setdefault(packet["epoch"], {}).update(packet["metrics"])
        elif packet["type"] == "epoch" and packet["epoch"] in metrics:
            over.append((packet["epoch"], metrics[packet["epoch"]]))
    return over
