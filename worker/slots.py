"""How many CPU jobs a host takes at once."""

import os

from shared.settings import Settings


def slots_of(settings: Settings) -> int:
    """`EPOCHCAST_SLOTS`, else one for every two cores this process may use (at least 1)."""
    if settings.slots is not None:
        return settings.slots
    return max(1, len(os.sched_getaffinity(0)) // 2)


def threads_per_job(settings: Settings) -> int:
    """CPU threads of one trainer process: the cores divided among the slots (at least 1)."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, slots_of(settings)))
