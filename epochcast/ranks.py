"""What the ranks of a run tell each other: a few small values in the store that torch.distributed has anyway."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from epochcast import environment


@dataclass(frozen=True)
class Ranks:
    """The ranks of the default process group, and a part of its store that is ours (`torch.distributed.Store`).

    The store's methods raise RuntimeError once the process that keeps it is gone.
    """

    rank: int
    world: int
    store: Any

    def wait(self, keys: Sequence[str], timeout_s: float) -> bool:
        """Whether all keys are there, now or within the time. The interpreter's lock is free meanwhile."""
        from torch.distributed import DistStoreError

        try:
            self.store.wait(list(keys), timedelta(seconds=timeout_s))
        except DistStoreError:
            return False
        return True


def ranks(purpose: str) -> Ranks | None:
    """The ranks now, or None where one process trains alone. `purpose`: a prefix of the keys.

    Imports nothing, so that a signal handler may call it: no process group is there before torch.distributed is.
    """
    group = sys.modules.get("torch.distributed.distributed_c10d")
    if group is None or not group.is_initialized() or group.get_world_size() < 2:
        return None
    store = group.PrefixStore(f"epochcast/{purpose}", group._get_default_store())
    return Ranks(group.get_rank(), group.get_world_size(), store)


class Gathering:
    """Brings a value of each rank to rank 0, for calls that a script makes in all ranks or in rank 0 alone."""

    WAIT_S = 30.0

    def __init__(self, purpose: str) -> None:
        self._purpose = purpose
        self._calls: dict[str, int] = {}
        self.is_incomplete = False
        """Other ranks didn't call: rank 0 has waited for them once and does so no more."""

    def gather(self, name: str, value: bytes) -> dict[int, bytes]:
        """The values by rank, in rank 0; elsewhere and alone only the own one. `name`: what all ranks call it."""
        several = ranks(self._purpose)
        if several is None:
            return {environment.rank(): value}
        self._calls = {name: self._calls.get(name, 0) + 1}
        keys = [f"{name}/{self._calls[name]}/{rank}" for rank in range(several.world)]
        if several.rank != 0:
            several.store.set(keys[several.rank], value)
            return {several.rank: value}
        if self.is_incomplete or not several.wait(keys[1:], self.WAIT_S):
            self.is_incomplete = True
            return {0: value}
        others = several.store.multi_get(keys[1:])
        for key in keys[1:]:
            several.store.delete_key(key)
        return {0: value, **dict(enumerate(others, 1))}
