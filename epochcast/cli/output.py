"""How commands print: tables and panels for people, JSON for programs, and nothing that could steer a terminal."""

import os
import re
import sys
from collections.abc import Container, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPE_WIDTH = 1000
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def plain(text: object) -> str:
    """`text` without escape sequences and control characters: a job's log must not repaint who reads it."""
    return _CONTROL.sub("", str(text))


def plain_lines(text: str) -> list[str]:
    """The lines of a longer text, each as `plain` leaves it."""
    return [plain(line) for line in text.splitlines()]


def console() -> "Console":
    """For stdout; coloured on a terminal only, and never when NO_COLOR is set."""
    from rich.console import Console

    # A pipe has no width: what stands on one line there can be searched and cut.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(highlight=False, width=width)


def _print(renderable: "RenderableType") -> None:
    """Prints it without the blanks that fill each line up to the table's edge."""
    screen = console()
    with screen.capture() as capture:
        screen.print(renderable)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def print_json(value: Any) -> None:
    """One line, as `jq` and line-wise readers like it. Pydantic models become what the server sent."""
    import orjson
    from pydantic import BaseModel

    def content(part: Any) -> Any:
        if isinstance(part, BaseModel):
            return part.model_dump(mode="json")
        raise TypeError(f"{type(part).__name__} has no JSON form")

    print(orjson.dumps(value, default=content).decode())


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, nothing: str, whole: Container[str] = ()
) -> None:
    """A table; `nothing`: what to say when there are no rows."""
    found = [list(row) for row in rows]
    if found:
        _print(table_of(columns, found, whole=whole))
    else:
        print(nothing)


def table_of(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, whole: Container[str] = ()
) -> "RenderableType":
    """The rows below the columns' names; numbers stand right. `whole`: columns that are not folded for want of room."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    found = list(rows)
    for number, name in enumerate(columns):
        is_number = all(isinstance(row[number], int | float) or row[number] is None for row in found)
        table.add_column(
            name, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number or name in whole
        )
    for row in found:
        table.add_row(*(shown(cell) for cell in row))
    return table


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """`name  value` lines; what is None is left out."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in fields:
        if value is not None:
            grid.add_row(name, shown(value))
    _print(grid)


def shown(value: object) -> Any:
    """A cell: text without markup, numbers with four significant digits, nothing for None."""
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    match value:
        case Text() | ProgressBar():
            return value
        case None:
            return Text("-", style="dim")
        case bool():
            return Text("yes" if value else "no")
        case float():
            return Text(f"{value:.4g}")
        case _:
            return Text(plain(value))


STATUS_STYLES = {"queued": "yellow", "running": "cyan", "succeeded": "green", "failed": "red", "stopped": "magenta"}


def status_text(status: str) -> Any:
    from rich.text import Text

    return Text(plain(status), style=STATUS_STYLES.get(status, ""))


def metrics_text(metrics: dict[str, Any]) -> str:
    """`train_loss 0.0234  val_loss -`: `-` where the value was NaN or infinite."""
    return "  ".join(f"{name} {'-' if value is None else f'{value:.4g}'}" for name, value in metrics.items())


def typed(values: dict[str, Any]) -> str:
    """Hyperparameters as they would be typed: `lr=0.01 dataset=digits`; those that are not set are left out."""
    return " ".join(f"{name}={value}" for name, value in values.items() if value is not None)


def ago(moment: datetime) -> str:
    """`12 s ago`, `3 h ago`: coarse, as in a list."""
    number, unit, *_ = duration((datetime.now(UTC) - moment).total_seconds()).split()
    return f"{number} {unit} ago"


def duration(seconds: float) -> str:
    """`4 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    whole = max(0, round(seconds))
    for size, unit, smaller, smaller_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{whole} s"
