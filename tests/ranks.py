"""Starts the ranks of a script as torchrun does: one process each, with its variables, on this machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.listening import Attempt
from tests.warm import Forked
from worker.ranks import free_port


class Rank:
    """One process, and the lines it has printed so far."""

    def __init__(self, process: Forked) -> None:
        self.process = process
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        with self.process.stdout as output:
            self.lines.extend(line.rstrip("\n") for line in output)

    def ended(self, timeout_s: float = 150) -> tuple[int, str]:
        """Exit code and output."""
        code = self.process.wait(timeout_s)
        self._thread.join(timeout_s)
        return code, "\n".join(self.lines)


@contextmanager
def started(attempt: Attempt, world: int, *arguments: str, **environment: str) -> Iterator[list[Rank]]:
    """The ranks of `python script …`, in order, which end as trainers do; those still running are killed at the end."""
    port = str(free_port())
    ranks = [
        Rank(attempt.start_warm(*arguments, **variables(rank, world, port), **environment)) for rank in range(world)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.ended()


def variables(rank: int, world: int, port: str) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "GLOO_SOCKET_IFNAME": "lo",
    }
