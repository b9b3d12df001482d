"""The micro-batch: read from what a job names, halved without changing the rows of an optimizer step."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.micro_batch import LARGEST, MicroBatch


@pytest.mark.parametrize(
    ("hyperparameters", "expected"),
    [
        ({}, None),
        ({"lr": 0.1}, None),
        ({"micro_batch_size": 8}, MicroBatch(8, 1)),
        ({"micro_batch_size": 8, "accumulation_steps": 4}, MicroBatch(8, 4)),
        ({"batch_size": 64}, MicroBatch(64, 1)),
        ({"batch_size": 64, "micro_batch_size": None, "accumulation_steps": None}, MicroBatch(64, 1)),
        ({"batch_size": 64, "micro_batch_size": 16}, MicroBatch(16, 4)),
        ({"batch_size": 64, "accumulation_steps": 4}, MicroBatch(16, 4)),
        ({"micro_batch_size": "8"}, None),
        ({"micro_batch_size": True}, None),
        ({"micro_batch_size": 0}, None),
        ({"micro_batch_size": 10**30}, None),
        ({"batch_size": 4, "accumulation_steps": 8}, None),
    ],
)
def test_micro_batch_of_a_jobs_hyperparameters(hyperparameters: dict[str, Any], expected: MicroBatch | None) -> None:
    assert MicroBatch.of(hyperparameters) == expected


def test_even_sizes_are_halved_and_odd_ones_take_the_next_divisor() -> None:
    seen = []
    part: MicroBatch | None = MicroBatch(100, 1)
    while part is not None:
        seen.append((part.size, part.accumulation_steps))
        part = part.smaller()
    assert seen == [(100, 1), (50, 2), (25, 4), (10, 10), (5, 20), (2, 50), (1, 100)]
    assert MicroBatch(7, 2).smaller() == MicroBatch(2, 7)


@given(st.integers(1, 2**14) | st.integers(1, LARGEST).filter(lambda size: size % 2 == 0), st.integers(1, 1000))
def test_smaller_keeps_the_effective_batch_and_comes_to_an_end(size: int, steps: int) -> None:
    part = MicroBatch(size, steps)
    smaller = part.smaller()
    if smaller is None:
        assert size == 1
        return
    assert smaller.size <= size // 2
    assert smaller.size * smaller.accumulation_steps == size * steps
    assert MicroBatch.of(smaller.as_hyperparameters()) == smaller
