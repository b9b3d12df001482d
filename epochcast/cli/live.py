"""A board on a terminal, repainted in place: progress bar, ETA, loss sparkline, GPUs, the last log lines."""

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from epochcast.cli.board import Board, levels, spans_decades, sparkline
from epochcast.cli.output import STATUS_STYLES, duration, metrics_text, plain
from epochcast.jobs import Status

LINES_SHOWN = 8
LEVEL_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red", "DEBUG": "dim"}


def picture(board: Board, width: int) -> RenderableType:
    """The whole display, `width` columns wide."""
    parts: list[RenderableType] = [_title(board), _bar(board)]
    if board.losses:
        line = sparkline(levels(board.losses), max(10, min(60, width - 30)))
        name = "loss (log)  " if spans_decades(board.losses) else "loss  "
        parts.append(Text.assemble((name, "bold"), (line, "cyan"), f"  {board.losses[-1]:.4g}"))
    if board.status is Status.RUNNING:
        parts += [Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in board.places]
    if board.metrics:
        parts.append(Text(plain(metrics_text(board.metrics)), style="dim", overflow="ellipsis", no_wrap=True))
    for level, line in board.lines[-LINES_SHOWN:]:
        parts.append(Text("  " + plain(line), style=LEVEL_STYLES.get(level, ""), overflow="ellipsis", no_wrap=True))
    if board.notice:
        parts.append(Text(plain(board.notice), style="yellow"))
    return Group(*parts)


def _title(board: Board) -> Text:
    title = Text.assemble(
        (f"job {board.job_id}", "bold"),
        f"  {plain(board.name)}  ",
        (board.status.value, STATUS_STYLES[board.status]),
        overflow="ellipsis",
        no_wrap=True,
    )
    if board.attempt > 1:
        title.append(f"  attempt {board.attempt}")
    if board.stop_requested and board.status is Status.RUNNING:
        title.append("  stopping", style="magenta")
    if board.pending_reason:
        title.append(f"  {plain(board.pending_reason)}", style="yellow")
    return title


def _bar(board: Board) -> Table:
    grid = Table.grid(padding=(0, 1))
    eta = f"ETA {duration(board.eta_s)}" if board.eta_s is not None and board.status is Status.RUNNING else ""
    grid.add_row(
        ProgressBar(total=1.0, completed=board.progress, width=40),
        f"{board.progress:4.0%}",
        f"epoch {board.current_epoch}/{board.total_epochs}",
        eta,
    )
    return grid
