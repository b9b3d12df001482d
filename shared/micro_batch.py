"""The micro-batch that a job's hyperparameters name, and the next smaller one with the same effective batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

LARGEST = 2**24


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """`size` rows pass through the network at once, `accumulation_steps` of them make one optimizer step."""

    size: int
    accumulation_steps: int

    @classmethod
    def of(cls, hyperparameters: Mapping[str, Any]) -> Self | None:
        """From `micro_batch_size`, `accumulation_steps` and `batch_size` (their product), as far as they are given."""
        size, steps, batch_size = (
            _count(hyperparameters.get(name)) for name in ("micro_batch_size", "accumulation_steps", "batch_size")
        )
        if size is None and batch_size is not None:
            size = batch_size // (steps or 1)
        elif size is not None and steps is None and batch_size is not None:
            steps = batch_size // size
        return cls(size, steps or 1) if size else None

    def smaller(self) -> Self | None:
        """Half as many rows, or the next number below that divides the effective batch; None at one row."""
        rows = self.size * self.accumulation_steps
        size = next((size for size in range(self.size // 2, 0, -1) if rows % size == 0), None)
        return None if size is None else type(self)(size, rows // size)

    def as_hyperparameters(self) -> dict[str, int]:
        """What a requeue writes over the job's own; `batch_size` stays what it was."""
        return {"micro_batch_size": self.size, "accumulation_steps": self.accumulation_steps}


def _count(value: object) -> int | None:
    return value if type(value) is int and 1 <= value <= LARGEST else None
