"""Plays torchrun for one attempt: several trainers with its variables, that meet over a store in this process."""

import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from tests.listening import Attempt, finished
from tests.warm import Forked


@contextmanager
def started(attempt: Attempt, count: int, *arguments: str) -> Iterator[list[Forked]]:
    """`python …` once a rank, `-m worker.trainer` by default; those that still run at the end are killed."""
    # As torchrun's agent has one: it takes a free port itself, so that no two tests race for one.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    told = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    processes = []
    try:
        for rank in range(count):
            told |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(attempt.start_warm(*(arguments or ("-m", "worker.trainer")), **told))
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.communicate()


def ended(attempt: Attempt, count: int, *arguments: str) -> list[tuple[int, str]]:
    """Exit code and output of each rank, once all have ended and all they said has been read."""
    with started(attempt, count, *arguments) as processes:
        results = [finished(process) for process in processes]
    attempt.settle()
    return results
