"""What a process is told by its environment: the attempt's socket and job file, and its place among the ranks."""

import os

SOCKET, JOB, RANK, WORLD_SIZE = "EPOCHCAST_SOCKET", "EPOCHCAST_JOB", "RANK", "WORLD_SIZE"
_kept: dict[str, str] = {}


def keep() -> None:
    """For a trainer, before the script's first line: a script that empties `os.environ` stays in its job."""
    _kept.update({name: os.environ[name] for name in (SOCKET, JOB, RANK, WORLD_SIZE) if name in os.environ})


def told(name: str) -> str | None:
    """As `os.environ` has it now, where a script may number ranks that it starts itself; else as it was kept."""
    return os.environ.get(name, _kept.get(name))


def socket() -> str:
    """Where the attempt's supervisor listens. Raises KeyError outside a job."""
    return os.environ.get(SOCKET) or _kept[SOCKET]


def rank() -> int:
    """0 in a single process. Raises ValueError for what is no number."""
    return int(told(RANK) or 0)


def world_size() -> int:
    """1 for a single process. Raises ValueError for what is no number."""
    return int(told(WORLD_SIZE) or 1)
