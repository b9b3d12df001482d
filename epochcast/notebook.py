"""A job in a notebook: its picture as HTML, repainted in place below the cell. IPython is used, never imported."""

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from epochcast.cli.board import levels, spans_decades
from epochcast.cli.output import duration, metrics_text, plain
from epochcast.jobs import Status

if TYPE_CHECKING:
    from epochcast.cli.board import Board
    from epochcast.following import Message

EVERY_S = 0.25
LINES_SHOWN = 8
WIDTH, HEIGHT = 320, 48
POINTS = 160
_COLOURS = {
    "queued": "#b58900",
    "running": "#268bd2",
    "succeeded": "#2e9e44",
    "failed": "#dc322f",
    "stopped": "#a347ba",
}


def is_here() -> bool:
    """Whether this is a cell of a notebook; IPython in a terminal is a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


@contextmanager
def shown() -> "Iterator[Callable[[Board, Message | None], None]]":
    """Repaints at most four times a second, however fast the messages come, and leaves the last picture standing."""
    handle: Any = None
    latest: Board | None = None
    painted: Board | None = None
    painted_at = 0.0

    def paint() -> None:
        nonlocal handle, painted, painted_at
        if latest is None or latest is painted:
            return
        painted, painted_at = latest, time.monotonic()
        bundle = {"text/html": picture(latest), "text/plain": text(latest)}
        if handle is None:
            handle = sys.modules["IPython"].display.display(bundle, raw=True, display_id=True)
        else:
            handle.update(bundle, raw=True)

    def show(board: "Board", _message: "Message | None") -> None:
        nonlocal latest
        latest = board
        if time.monotonic() - painted_at >= EVERY_S:
            paint()

    try:
        yield show
    finally:
        paint()


def text(board: "Board") -> str:
    """For where no HTML is shown: one line."""
    return f"job {board.job_id} {plain(board.name)}: {board.status}, epoch {board.current_epoch}/{board.total_epochs}"


def picture(board: "Board") -> str:
    """The whole display. Colours that say nothing are the page's own: it may be dark."""
    parts = [_title(board), _bar(board)]
    if board.losses:
        scale = " (log scale)" if spans_decades(board.losses) else ""
        parts.append(f"<div>{_curve(levels(board.losses))} loss{scale} {board.losses[-1]:.4g}</div>")
    if board.metrics:
        parts.append(f'<div style="opacity:.7">{_safe(metrics_text(board.metrics))}</div>')
    if board.lines:
        lines = "\n".join(_safe(line) for _, line in board.lines[-LINES_SHOWN:])
        parts.append(f'<pre style="margin:.3em 0;opacity:.8;font-size:85%">{lines}</pre>')
    if board.error_message:
        parts.append(f'<div style="color:{_COLOURS["failed"]}"><b>{_safe(board.error_message)}</b></div>')
        if board.error is not None and board.error.verdict:
            parts.append(f"<div>{_safe(board.error.verdict)}</div>")
    if board.model_id is not None:
        parts.append(f"<div>model {board.model_id}</div>")
    if board.notice:
        parts.append(f'<div style="color:{_COLOURS["queued"]}">{_safe(board.notice)}</div>')
    return f'<div class="epochcast-job" style="font-family:sans-serif;line-height:1.5">{"".join(parts)}</div>'


def _title(board: "Board") -> str:
    colour = _COLOURS[board.status]
    more = [f"attempt {board.attempt}"] if board.attempt > 1 else []
    more += ["stopping"] if board.stop_requested and board.status is Status.RUNNING else []
    more += [_safe(board.pending_reason)] if board.pending_reason else []
    return (
        f"<div><b>job {board.job_id}</b> {_safe(board.name)} "
        f'<b style="color:{colour}">{board.status}</b> {", ".join(more)}</div>'
    )


def _bar(board: "Board") -> str:
    percent = f"{board.progress:.0%}"
    when = ""
    if board.status is Status.RUNNING and board.eta_s is not None:
        when = f", ETA {duration(board.eta_s)}"
    elif board.duration_s is not None:
        when = f", {duration(board.duration_s)}"
    return (
        f'<div><progress value="{board.progress:.4f}" max="1" style="width:{WIDTH}px" '
        f'aria-label="progress of job {board.job_id}">{percent}</progress> '
        f"{percent}, epoch {board.current_epoch}/{board.total_epochs}{when}</div>"
    )


def _curve(losses: tuple[float, ...]) -> str:
    """One line between the least and the greatest; of very many, every n-th and the last."""
    if len(losses) > POINTS:
        step = -(-len(losses) // POINTS)
        losses = (*losses[::step], losses[-1])
    least, greatest = min(losses), max(losses)
    span = (greatest - least) or 1.0
    across = WIDTH / max(1, len(losses) - 1)
    points = " ".join(
        f"{number * across:.1f},{2 + (greatest - loss) / span * (HEIGHT - 4):.1f}" for number, loss in enumerate(losses)
    )
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" style="vertical-align:middle" role="img" aria-label="loss by epoch">'
        f'<polyline points="{points}" fill="none" stroke="{_COLOURS["running"]}" stroke-width="1.5"/></svg>'
    )


def _safe(value: object) -> str:
    return html.escape(plain(value))
