"""Which of several failed ranks is to blame: the others only lost it in their next collective call."""

import re
from collections.abc import Sequence

from epochcast.jobs import JobError

# How torch.distributed, gloo and NCCL word the loss of another rank, its silence, an aborted collective (torch 2.13).
_LOST_RANK = re.compile(
    r"Connection (?:closed|reset) by peer|Broken pipe|Connection refused|Dist(?:Backend|Network|Store)Error|"
    r"ncclRemoteError|ncclSystemError|remote process exited|timed? ?out|recvValue failed|failed to recv",
    re.IGNORECASE,
)
# Who words it: a script's own connection to something else is refused in the same words.
_TORCH = re.compile(
    r"by peer \[|gloo|nccl|ProcessGroup|Dist(?:Backend|Network|Store)Error|TCPStore|c10d|torch/distributed|collective",
    re.IGNORECASE,
)


def cause_of(failures: Sequence[JobError]) -> JobError | None:
    """The failure that the others follow from: of those that don't tell of another rank's loss, else of all, the
    first. `failures`: in the order in which they became known, at most one of each rank."""
    return next((error for error in failures if not is_consequence(error)), failures[0] if failures else None)


def is_consequence(error: JobError) -> bool:
    """Whether this failure is how a rank notices that another one is gone or stuck."""
    if error.type not in ("user_error", "environment", "platform"):
        return False
    if error.signal == "SIGABRT":  # NCCL's watchdog ends a process that waits too long for the others
        return True
    said = f"{error.message}\n{error.detail or ''}"
    last_frame = (error.traceback or "")[-1_000:]
    return bool(_LOST_RANK.search(said)) and bool(_TORCH.search(said + last_frame))
