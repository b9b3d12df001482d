"""Every way the gateway closes a socket: code and reason text are the contract's table (section 2), in one place."""

from dataclasses import dataclass

from epochcast.jobs import Status


@dataclass(frozen=True, slots=True)
class Close:
    """A close frame. Reasons are part of the contract: clients decide by them whether to come back."""

    code: int
    reason: str


JOB_NOT_FOUND = Close(1008, "job not found")
AUTHENTICATION_REQUIRED = Close(1008, "authentication required")
INVALID_TOKEN = Close(1008, "invalid token")
TOKEN_EXPIRED = Close(1008, "token expired")
INVALID_CURSOR = Close(1008, "invalid cursor")
TOO_MANY_CONNECTIONS = Close(1013, "too many connections")
SLOW_CONSUMER = Close(1013, "slow consumer")
SERVICE_RESTART = Close(1012, "service restart")
IDLE_TIMEOUT = Close(4408, "idle timeout")
TEXT_ONLY = Close(1003, "text frames only")
# Outside the table: neither SQL nor Redis can say anything about the job now, or a fault of ours. Clients retry both.
UNAVAILABLE = Close(1013, "temporarily unavailable")
INTERNAL_ERROR = Close(1011, "internal error")


def finished(status: Status) -> Close:
    """After the terminal message."""
    return Close(1000, str(status))


class Refused(Exception):
    """Raised when a socket must be closed before its job's messages began."""

    def __init__(self, close: Close) -> None:
        super().__init__(close.reason)
        self.close = close
