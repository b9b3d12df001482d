"""A recipe's steps on a GPU: none of them waits for the device, whatever the recipe does at an epoch's end."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from shared import recipes
from tests.listening import finished, listening

pytestmark = pytest.mark.gpu

# The trainer, with torch's own watch over the loop of each epoch: what waits for the device there raises.
WATCHED = dedent("""
    import sys
    import torch
    from epochcast.run import Run
    from worker.trainer import main

    batches = Run.batches

    def watched(run, loader):
        torch.cuda.set_sync_debug_mode("error")
        yield from batches(run, loader)
        torch.cuda.set_sync_debug_mode("default")

    Run.batches = watched
    sys.exit(main())
""")


@pytest.mark.parametrize(
    ("recipe", "hyperparameters"),
    [
        ("image-classifier", {"width": 8, "shift": 1, "flip": True}),
        ("image-classifier", {"width": 8, "batch_size": 64, "micro_batch_size": 32}),
        ("tabular-classifier", {}),
        ("language-model", {"steps_per_epoch": 20, "accumulation_steps": 2, "dropout": 0.1, "sample_bytes": 8}),
    ],
)
def test_no_step_waits_for_the_device(tmp_path: Path, recipe: str, hyperparameters: dict[str, Any]) -> None:
    chosen = recipes.validate(recipe, hyperparameters)
    with listening(tmp_path / "a", recipe=recipe, params=chosen, total_epochs=2) as attempt:
        code, output = finished(attempt.start("-c", WATCHED))
        attempt.settle()
    assert code == 0, output
    assert [report["epoch"] for report in attempt.said("report")] == [1, 2]
