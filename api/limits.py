"""What the relay allows and how long it waits: the contract's numbers, which tests make shorter."""

from dataclasses import dataclass
from typing import Self

from api.keepalive import PING_S
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds. A place is refreshed several times before it would be given to somebody else."""

    connections_per_job: int = 10
    idle_timeout_s: float = 300.0
    send_timeout_s: float = 5.0
    queue_bytes: int = 1024 * 1024
    """Messages waiting for one subscriber whose peer doesn't drain; texts are shared between subscribers."""
    conflate_bytes: int = 64 * 1024
    """Beyond that a subscriber of all jobs gets fewer states."""
    slot_s: float = 8.0
    slot_refresh_s: float = 2.0
    reconcile_s: float = 5.0
    sweep_s: float = 0.25
    """How often sockets are checked for stalled sends, idleness and expired tokens."""
    linger_s: float = 10.0
    """A channel stays subscribed that long after its last subscriber: reconnects come in waves."""
    polled_jobs: int = 10_000
    """Followed for pollers by one process."""
    polled_s: float = 30.0
    """A job that nobody asks for is followed that long to twice that long."""
    redis_patience_s: float = 1.0
    comment_s: float = 5.0
    """How often an event stream without messages shows that it lives."""
    ping_s: float = PING_S
    """How often a WebSocket is pinged."""
    feed_ping_s: float = 1.0
    feed_silence_s: float = 3.0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(connections_per_job=settings.ws_max_connections_per_job, idle_timeout_s=settings.ws_idle_timeout_s)
