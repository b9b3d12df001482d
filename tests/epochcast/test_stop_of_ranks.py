"""Several ranks of one training stop at the same place, whenever SIGTERM reaches each of them."""

import json
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from epochcast.ranks import Ranks
from epochcast.stop import Talks
from tests.listening import listening
from tests.ranks import Rank, started
from tests.waiting import wait_until

# Many runs one after the other in the same processes: each stop costs no new start of torch. `mode` of a run: what the
# script does between two looks for a stop.
ROUNDS = """
import json, sys, time
import torch
import torch.distributed as dist
import epochcast

dist.init_process_group("gloo")
rank = dist.get_rank()

def step(number):
    time.sleep(told["pause_s"] * (10 if rank == told["slow"] else 1))
    if told["mode"] != "accumulating" or number % 4 == 3:
        dist.all_reduce(torch.ones(1))

for told in json.loads(sys.argv[1]):
    run = epochcast.init()
    dist.barrier()
    print("started", flush=True)
    number, finished = 0, []
    if told["mode"] == "own loop":
        while not run.stopping:
            step(number)
            number += 1
    else:
        for epoch in run.epochs():
            rows = range(6)
            for number in run.batches(rows) if told["mode"] != "whole epochs" else rows:
                step(number)
            finished.append(epoch)
    print(json.dumps([run.epoch, number, run.cut_short, len(finished)]), flush=True)
    run.close()
    dist.barrier()
dist.destroy_process_group()
"""
MODES = ("batches", "accumulating", "whole epochs", "own loop")


class Halting:
    """A store of torch's, with pauses before each call that let other ranks in between any two."""

    def __init__(self, store: Any, seed: int) -> None:
        self._store = store
        self._chance = random.Random(seed)

    def __getattr__(self, name: str) -> Any:
        if self._chance.random() < 0.5:
            time.sleep(self._chance.choice([0, 0, 0.0001, 0.001]))
        return getattr(self._store, name)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_verdict_is_the_same_for_all_ranks_however_their_calls_interleave(world: int) -> None:
    for seed in range(100):
        store = HashStore()

        def walk(rank: int, seed: int = seed, store: Any = store) -> int | None:
            """Looks at place after place, at its own pace; joins somewhere on the way. Where it was told to stop."""
            chance = random.Random(f"{seed}/{rank}")
            talks = Talks(Ranks(rank, world, Halting(store, seed * 100 + rank)))
            joins_at, is_fast = chance.randrange(30), chance.random() < 0.5
            for place in range(10_000):
                if not is_fast:
                    time.sleep(0.0001)
                if place == joins_at:
                    talks.join(place)
                if place > joins_at and talks.stop_at(place):
                    return place
            return None

        with ThreadPoolExecutor(world) as threads:
            places = set(threads.map(walk, range(world)))
        assert len(places) == 1, f"seed {seed}: {places}"
        assert places != {None}


def rounds(world: int, count: int) -> list[dict[str, Any]]:
    chance = random.Random(world)
    slow = [-1, *range(world)]
    return [
        {"mode": MODES[number % len(MODES)], "pause_s": chance.choice([0, 0.001, 0.01]), "slow": chance.choice(slow)}
        for number in range(count)
    ]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_that_hear_of_a_stop_at_different_moments_stop_at_the_same_place(world: int, tmp_path: Path) -> None:
    chance = random.Random(world)
    told = rounds(world, 24)
    with listening(tmp_path / "attempt", total_epochs=10**9) as attempt:
        (attempt.folder / "train.py").write_text(ROUNDS)
        with started(attempt, world, "train.py", json.dumps(told)) as ranks:
            for number, one in enumerate(told):
                wait_lines(ranks, 2 * number + 1, f"the start of round {number}, {one}")
                time.sleep(chance.uniform(0, 0.2))
                ask_at_random(ranks, chance)
                wait_lines(ranks, 2 * number + 2, f"the stop in round {number}, {one}")
                places = {r.lines[2 * number + 1] for r in ranks}
                assert len(places) == 1, f"round {number}, {one}: {[r.lines[2 * number :] for r in ranks]}"
            assert [r.ended()[0] for r in ranks] == [0] * world


def wait_lines(ranks: list[Rank], count: int, what: str) -> None:
    wait_until(lambda: all(len(rank.lines) >= count for rank in ranks), what, timeout_s=60)


def ask_at_random(ranks: list[Rank], chance: random.Random) -> None:
    """SIGTERM to all, in any order, up to a second apart."""
    longest_s = chance.choice([0, 0.001, 0.05, 1.0])
    moments = sorted((chance.uniform(0, longest_s), rank) for rank in range(len(ranks)))
    for (before, _), (moment, rank) in pairwise([(0.0, 0), *moments]):
        time.sleep(moment - before)
        ranks[rank].process.send_signal(signal.SIGTERM)
