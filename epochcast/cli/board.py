"""What a watcher sees of a job, as one value: `apply(board, message)` is the only way it changes."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import log10
from typing import assert_never

from epochcast.following import Connected, Message, Notice, Polling, Reconnecting
from epochcast.jobs import JobError, Metrics, Status, TrainingJob

LINES_KEPT = 200
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True)
class Board:
    """A job as its messages have told it so far."""

    job_id: int
    name: str
    status: Status = Status.QUEUED
    progress: float = 0.0
    current_epoch: int = 0
    total_epochs: int = 1
    attempt: int = 0
    eta_s: float | None = None
    stop_requested: bool = False
    pending_reason: str | None = None
    metrics: Metrics = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    """`current_loss` of each epoch seen, in order; a repeated epoch replaces its first showing."""
    loss_epochs: tuple[int, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    """The last log lines: level and text."""
    model_id: int | None = None
    duration_s: float | None = None
    error_message: str | None = None
    error: JobError | None = None
    places: tuple[str, ...] = ()
    """Where it runs, a line for each host with its GPUs; empty where that isn't asked for, or not known."""
    notice: str | None = None
    """What is wrong with the connection now."""
    has_gap: bool = False


def board_of(job: TrainingJob) -> Board:
    return Board(
        job_id=job.job_id,
        name=job.name,
        status=job.status,
        progress=job.progress,
        current_epoch=job.current_epoch,
        total_epochs=job.total_epochs,
        attempt=job.attempt,
        pending_reason=job.pending_reason,
        eta_s=job.eta_s,
        stop_requested=job.stop_requested,
        metrics=job.final_metrics or job.metrics,
        model_id=job.model_id,
        error_message=job.error_message,
        error=job.error,
    )


POINTS = 400
"""So many epochs of the history are enough for any curve that is shown."""


def with_history(board: Board, columns: dict[str, list[float | None]]) -> Board:
    """The board with the losses of the epochs before now, as the metrics history has them by column."""
    name = next((name for name in ("train_loss", "loss", "val_loss") if name in columns), None)
    if name is None:
        return board
    seen = [
        (int(epoch), loss)
        for epoch, loss in zip(columns["epoch"], columns[name], strict=True)
        if epoch is not None and loss is not None
    ]
    return replace(board, loss_epochs=tuple(epoch for epoch, _ in seen), losses=tuple(loss for _, loss in seen))


def apply(board: Board, message: Message) -> Board:
    """The board after `message`."""
    if message.type == "log":
        lines = (*board.lines, *((message.level, line) for line in message.message.splitlines() or [""]))
        return replace(board, lines=lines[-LINES_KEPT:], notice=None)
    board = replace(
        board,
        status=message.status,
        progress=message.progress,
        current_epoch=message.current_epoch,
        total_epochs=message.total_epochs,
        notice=None,
        pending_reason=board.pending_reason if message.status is Status.QUEUED else None,
    )
    match message.type:
        case "progress":
            return replace(
                _with_loss(board, message.current_epoch, message.current_loss),
                metrics=message.metrics,
                eta_s=message.eta_s,
                attempt=message.attempt,
                stop_requested=message.stop_requested,
                has_gap=board.has_gap or bool(message.resync),
            )
        case "complete":
            return replace(
                board,
                metrics=message.final_metrics,
                model_id=message.model_id,
                duration_s=message.duration_s,
                eta_s=None,
            )
        case "error":
            return replace(
                board,
                error_message=message.error_message,
                error=message.error,
                eta_s=None,
            )
        case _:
            assert_never(message)


def _with_loss(board: Board, epoch: int, loss: float | None) -> Board:
    """Adds an epoch's loss; a resumed attempt goes back, and what it repeats is forgotten first."""
    if loss is None or epoch < 1:
        return board
    kept = sum(1 for seen in board.loss_epochs if seen < epoch)
    return replace(board, losses=(*board.losses[:kept], loss), loss_epochs=(*board.loss_epochs[:kept], epoch))


def notice_text(notice: Notice) -> str | None:
    """What to tell about the connection; None when all is well."""
    match notice:
        case Connected():
            return None
        case Reconnecting(delay_s=delay_s, reason=reason):
            return f"{reason}; reconnecting in {delay_s:.1f} s (the job goes on)"
        case Polling(reason=reason):
            return f"no WebSocket ({reason}); polling instead"
        case _:
            assert_never(notice)


LOG_FROM = 30.0
"""A loss that falls so many times over is flat on a linear scale after its first epochs."""


def spans_decades(losses: tuple[float, ...]) -> bool:
    """Whether a curve of them should have a logarithmic scale."""
    return bool(losses) and min(losses) > 0 and max(losses) / min(losses) >= LOG_FROM


def levels(losses: tuple[float, ...]) -> tuple[float, ...]:
    """The heights of a curve: the losses, or their logarithms."""
    return tuple(log10(loss) for loss in losses) if spans_decades(losses) else losses


BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: tuple[float, ...], width: int) -> str:
    """`values` as at most `width` bars between their least and greatest; more values than bars are averaged."""
    if not values or width < 1:
        return ""
    if len(values) > width:
        edges = [round(part * len(values) / width) for part in range(width + 1)]
        values = tuple(sum(values[low:high]) / (high - low) for low, high in pairwise(edges) if high > low)
    least, greatest = min(values), max(values)
    span = greatest - least
    return "".join(BARS[round((value - least) / span * (len(BARS) - 1)) if span > 0 else 0] for value in values)
