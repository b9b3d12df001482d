"""The order of an epoch's samples: from seed and epoch alone, the same in every attempt, split over the ranks."""

import hashlib
from collections.abc import Callable, Iterator


class EpochSampler:
    """A sampler for `torch.utils.data.DataLoader`, from `run.sampler(len(dataset))`.

    Its order is that of the run's present epoch, whatever random numbers were drawn before and however many ranks
    there are; so a resumed epoch, and inside one what `run.batches` skips, are the samples of the first time. Each
    rank gets every `world`-th of them. All get equally many, because ranks that step together must step equally often:
    the first samples of the order come again at its end or, with `drop_last`, its last ones are left out.
    """

    def __init__(
        self,
        size: int,
        epoch: Callable[[], int],
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        """`epoch`: asked at each iteration's beginning."""
        if size < 1:
            raise ValueError(f"size {size} is no number of samples; give len(dataset), at least 1")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of the {world} from 0 to {world - 1}")
        if drop_last and size < world:
            raise ValueError(f"{size} samples leave none for each of {world} ranks; leave drop_last out")
        self._size = size
        self._epoch = epoch
        self._seed = seed
        self._rank = rank
        self._world = world
        self._shuffle = shuffle
        self._length = size // world if drop_last else -(-size // world)

    def __len__(self) -> int:
        """Samples of this rank."""
        return self._length

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        for place in range(self._rank, self._length * self._world, self._world):
            yield int(order[place % self._size])

    def _order(self) -> "range | list[int]":
        if not self._shuffle:
            return range(self._size)
        import torch

        digest = hashlib.sha256(f"samples/{self._seed}/{self._epoch()}".encode()).digest()
        own = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        order: list[int] = torch.randperm(self._size, generator=own).tolist()
        return order
