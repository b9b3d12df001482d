"""A run of this process under a listening supervisor, and what tests of the training SDK do with it."""

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from epochcast.training import Run
from tests.listening import Attempt
from tests.waiting import wait_until

Begin = Callable[..., tuple[Run, Attempt]]


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
