"""What following a job over a socket and by polling have in common: its messages, its place, its pace, its notices."""

from collections.abc import Callable
from dataclasses import dataclass

from epochcast.errors import UsageError
from epochcast.events import Complete, Error, EventId, Log, Progress, is_terminal

Message = Progress | Log | Complete | Error


@dataclass(frozen=True)
class Connected:
    """Messages flow, live."""


@dataclass(frozen=True)
class Reconnecting:
    """The connection is gone; the next try comes in `delay_s`. Nothing is lost: it resumes after the last message."""

    delay_s: float
    reason: str


@dataclass(frozen=True)
class Polling:
    """WebSocket can't be had here, so the job is polled; the messages are the same, a little later."""

    reason: str


Notice = Connected | Reconnecting | Polling
OnNotice = Callable[[Notice], None]


def unnoticed(_notice: Notice) -> None:
    """For whoever cares only for the messages."""


@dataclass(frozen=True)
class Pace:
    """How patient a watch is, in seconds and tries."""

    ping_every_s: float = 60.0
    """Text pings: the server closes a socket on which nothing moved for 300 s, and protocol pings don't count."""
    backoff_s: float = 0.5
    """The first delay is drawn from 0 to twice this, each later one from a range twice as wide."""
    longest_backoff_s: float = 30.0
    first_tries: int = 3
    """Tries before a socket that never brought a message is given up for polling; later it is tried for ever."""
    last_word_s: float = 10.0
    """How long to wait, after a terminal message, for the close that says it was not history."""
    settle_s: float = 2.0
    """After a reconnect, how long a server has to tell of the jobs that go on before the others are asked for."""
    poll_every_s: float = 3.0
    long_poll_s: int = 20


@dataclass
class Place:
    """Where a watch stands in the job's event log."""

    after: EventId | None
    """The newest message taken; None: whatever comes first is new."""
    has_ended: bool = False
    """The newest message is terminal: only the history of a restarted job can go on."""
    was_reached: bool = False
    """At least one message came."""
    resynced_at: str | None = None
    """The newest resync, which a server repeats as long as the cursor is ahead of what it has kept."""

    def takes(self, message: Message) -> bool:
        """Whether `message` is new; if so it becomes the place to resume from."""
        message_id = EventId.parse(message.id)
        if _is_resync(message) and message.id != self.resynced_at:
            self.resynced_at = message.id
        elif self.after is not None and message_id <= self.after:
            return False
        # A resync may stand before the cursor (Redis was wiped); what comes again up to the cursor is still known.
        self.after = message_id if self.after is None else max(self.after, message_id)
        self.has_ended = is_terminal(message)
        self.was_reached = True
        return True


def _is_resync(message: Message) -> bool:
    return message.type == "progress" and message.resync is True


def cursor(after: str | None) -> EventId | None:
    """The place that `after` names. Raises UsageError when it names none."""
    try:
        return None if after is None else EventId.parse(after)
    except ValueError as error:
        raise UsageError(str(error)) from None
