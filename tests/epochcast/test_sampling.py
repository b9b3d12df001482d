"""The sampler: one order per seed and epoch, shared by all ranks, the same again after a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import epochcast
from epochcast.sampling import EpochSampler
from epochcast.training import current_run


def order(size: int, epoch: int = 1, **chosen: Any) -> list[int]:
    return list(EpochSampler(size, lambda: epoch, **chosen))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = order(100)
    torch.manual_seed(7)
    torch.rand(3)
    assert order(100) == first
    assert sorted(first) == list(range(100))
    assert order(100, epoch=2) != first
    assert order(100, seed=1) != first
    assert order(5, shuffle=False) == [0, 1, 2, 3, 4]


def test_each_iteration_asks_for_the_epoch_anew() -> None:
    epoch = 1
    sampler = EpochSampler(50, lambda: epoch)
    first = list(sampler)
    epoch = 2
    assert list(sampler) == order(50, epoch=2) != first


@given(size=st.integers(1, 200), world=st.integers(1, 9), drop_last=st.booleans(), shuffle=st.booleans())
def test_ranks_share_the_epoch_evenly(size: int, world: int, drop_last: bool, shuffle: bool) -> None:
    if drop_last and size < world:
        return
    chosen: dict[str, Any] = {"world": world, "drop_last": drop_last, "shuffle": shuffle}
    parts = [order(size, rank=rank, **chosen) for rank in range(world)]
    assert {len(part) for part in parts} == {len(EpochSampler(size, lambda: 1, **chosen))}
    seen = [sample for step in zip(*parts, strict=True) for sample in step]  # as the ranks go through it together
    whole = order(size, shuffle=shuffle)
    assert seen[:size] == whole[: len(seen)]
    if drop_last:
        assert size - world < len(seen) <= size
    else:
        assert set(seen) == set(range(size))
        assert len(seen) < size + world


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"size": 0}, "size 0 is no number of samples"),
        ({"size": 5, "rank": 2, "world": 2}, "rank 2 is not one of the 2 from 0 to 1"),
        ({"size": 5, "world": 8, "drop_last": True}, "5 samples leave none for each of 8 ranks"),
    ],
)
def test_impossible_split_is_explained(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochSampler(epoch=lambda: 1, **chosen)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path / "run"


class Interrupted(Exception):
    """Raised in the middle of an epoch."""


def train(folder: Path, stop_after: int | None = None) -> list[tuple[int, list[int]]]:
    """The batches of three epochs, with a checkpoint after each; broken off after `stop_after` of them."""
    seen = []
    run = epochcast.init(total_epochs=3, out_dir=folder)
    try:
        done = {"steps": 0}
        run.state(done=done)
        run.resume()
        data = TensorDataset(torch.arange(20))
        loader: DataLoader[Any] = DataLoader(data, batch_size=4, sampler=run.sampler(len(data)))
        for epoch in run.epochs():
            torch.rand(done["steps"])  # random numbers that the order must not depend on
            for (batch,) in run.batches(loader):
                seen.append((epoch, batch.tolist()))
                done["steps"] += 1
                run.checkpoint()
                if len(seen) == stop_after:
                    raise Interrupted
    except Interrupted:
        pass
    finally:
        run.close()
    return seen


def test_resumed_in_the_middle_of_an_epoch_no_sample_is_lost_or_seen_twice(folder: Path) -> None:
    whole = train(folder / "whole")
    assert [sorted(n for _, batch in whole[at : at + 5] for n in batch) for at in (0, 5, 10)] == [list(range(20))] * 3
    begun = train(folder / "broken", stop_after=7)
    assert current_run() is None
    assert begun + train(folder / "broken") == whole


def test_each_rank_of_a_run_gets_its_own_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        run = epochcast.init(out_dir=folder)
        parts.append(list(run.sampler(10)))
        run.close()
    assert sorted(parts[0] + parts[1]) == list(range(10))
