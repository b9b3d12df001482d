"""The recipes on a GPU: in bf16 where they say so, learning, and the same bits twice."""

from pathlib import Path
from typing import Any

import pytest

from shared import recipes
from tests.gpu.conftest import wait_free
from tests.listening import CHECKOUT, listening
from worker.gpus import Gpu

pytestmark = pytest.mark.gpu

WATCHED = """
import runpy, torch
types = set()
def note(module, inputs, output):
    if torch.is_tensor(output):
        types.add(str(output.dtype).removeprefix("torch."))
torch.nn.modules.module.register_module_forward_hook(note)
runpy.run_path({recipe!r}, run_name="__main__")
print("types:", *sorted(types))
"""


@pytest.mark.parametrize(
    ("recipe", "chosen"),
    [("image-classifier", {"width": 16}), ("language-model", {"steps_per_epoch": 20})],
)
def test_a_recipe_computes_in_bf16_and_learns(gpu: Gpu, tmp_path: Path, recipe: str, chosen: dict[str, Any]) -> None:
    script = tmp_path / "watched.py"
    script.write_text(WATCHED.format(recipe=str(CHECKOUT / "worker/recipes" / f"{recipe.replace('-', '_')}.py")))
    params = recipes.validate(recipe, chosen)
    with listening(tmp_path / "attempt", script=str(script), params=params, total_epochs=3) as attempt:
        code, output = attempt.train()
        assert code == 0, output
        attempt.settle()
    [types] = [line for line in output.splitlines() if line.startswith("types:")]
    assert "bfloat16" in types
    losses = [report["metrics"]["val_loss"] for report in attempt.said("report") if "val_loss" in report["metrics"]]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert attempt.said("model")
    wait_free(gpu)


def test_a_recipe_repeats_bit_for_bit(gpu: Gpu, tmp_path: Path) -> None:
    params = recipes.validate("image-classifier", {"width": 8})
    models = []
    for name in ("first", "second"):
        with listening(tmp_path / name, recipe="image-classifier", params=params) as attempt:
            code, output = attempt.train()
            assert code == 0, output
        models.append((attempt.out / "model.safetensors").read_bytes())
    assert models[0] == models[1]
    wait_free(gpu)
