"""Seeds of an epoch: the same draws for the same numbers, other ones for others, and of torch's own generator."""

import random

import numpy
import pytest
import torch

from epochcast.randomness import reseed


def draws(seed: int, epoch: int, rank: int) -> list[float]:
    reseed(seed, epoch, rank)
    return [random.random(), float(numpy.random.rand()), torch.rand(1).item()]


def test_an_epoch_draws_the_same_again_and_no_other_draws_it() -> None:
    numbers = [(3, 1, 0), (3, 1, 0), (4, 1, 0), (3, 2, 0), (3, 1, 1)]
    first, again, *others = [draws(*chosen) for chosen in numbers]
    assert first == again
    for other in others:
        assert all(here != there for here, there in zip(first, other, strict=True))


def test_torch_draws_as_if_its_own_function_had_seeded_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reseed(3, 1, 0)
    without_devices = torch.rand(4)
    seed = torch.initial_seed()
    # On a host whose torch knows devices their generators are seeded too, and the CPU's is the same.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    reseed(3, 1, 0)
    assert torch.initial_seed() == seed
    assert torch.equal(torch.rand(4), without_devices)
