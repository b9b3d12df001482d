"""Which of several failed ranks is to blame: the others only lost it in their next collective call."""

import re
from collections.abc import Sequence

from epochcast.jobs import JobError

# How torch.distributed, gloo and NCCL word the loss of another rank, its silence, an aborted collective (torch 2.13).
_LOST_RANK = re.compile(
    r"Connection (?:closed|reset) by peer|Broken pipe|Connection refused|Dist(?:Backend|Network|Store)Error|"
    r"ncclRemoteError|ncclSystemError|remote process exited|gloo.*(?:timeout|timed out)|Timed out waiting|"
    r"wait timeout after|Socket Timeout|ProcessGroup(?:NCCL|Gloo)|collective operation timeout|"
    r"client socket has timed out|failed to recv|recvValue failed",
    re.IGNORECASE | re.DOTALL,
)


def cause_of(failures: Sequence[JobError]) -> JobError | None:
    """The failure that the others follow from: of those that don't tell of another rank's loss, else of all, the
    first. `failures`: in the order in which they became known, at most one of each rank."""
    return next((error for error in failures if not is_consequence(error)), failures[0] if failures else None)


def is_consequence(error: JobError) -> bool:
    """Whether this failure is how a rank notices that another one is gone or stuck."""
    if error.type not in ("user_error", "environment", "platform"):
        return False
    # NCCL's watchdog ends a process that waits too long for the others.
    return error.signal == "SIGABRT" or bool(_LOST_RANK.search(f"{error.message}\n{error.detail or ''}"))
