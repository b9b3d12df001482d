"""A real CUDA out-of-memory error of a recipe: the document's message, the device's numbers, and memory free again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shared import recipes
from tests.listening import listening
from tests.waiting import wait_until
from worker.gpus import Gpu, list_gpus

pytestmark = pytest.mark.gpu


@pytest.fixture
def crowded_gpu() -> Iterator[Gpu]:
    """The GPU with all but 1.5 GiB of its memory held by this process."""
    free_bytes, _ = torch.cuda.mem_get_info()
    held = torch.empty(free_bytes - 3 * 2**29, dtype=torch.uint8, device="cuda")
    yield list_gpus()[0]
    del held
    torch.cuda.empty_cache()


def test_recipe_too_large_for_the_gpu_says_so_and_leaves_nothing_behind(tmp_path: Path, crowded_gpu: Gpu) -> None:
    # 116 million weights with gradients and two moments: 1.9 GB
    wide = recipes.validate("image-classifier", {"width": 2048, "batch_size": 1024})
    with listening(tmp_path / "a", recipe="image-classifier", params=wide) as attempt:
        code, output = attempt.train()
        assert code == 1, output
        wait_until(lambda: attempt.said("failure"), "the failure")
    error = attempt.said("failure")[0]["error"]
    assert (error["type"], error["message"]) == ("cuda_oom", "CUDA out of memory")
    assert error["gpu"] == crowded_gpu.name
    total_gib = crowded_gpu.total_bytes / 2**30
    assert error["memory"]["total_gib"] == pytest.approx(total_gib, rel=0.05)
    assert error["memory"]["others_gib"] == pytest.approx(total_gib, abs=3)
    assert "held by other processes" in error["verdict"]
    wait_until(lambda: list_gpus()[0].used_bytes < crowded_gpu.used_bytes + 2**27, "the memory to be free again")


def test_recipe_on_the_gpu_repeats_bit_for_bit(tmp_path: Path) -> None:
    chosen = recipes.validate("image-classifier", {"width": 8})
    models = []
    for name in ("first", "second"):
        with listening(tmp_path / name, recipe="image-classifier", params=chosen) as attempt:
            code, output = attempt.train()
            assert code == 0, output
        models.append((attempt.out / "model.safetensors").read_bytes())
    assert models[0] == models[1]
