"""`logs` and `metrics`: what a job has told so far."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epochcast.cli.options import JobId, Json, Token, Url, client
from epochcast.cli.output import console, plain, print_json, print_table

if TYPE_CHECKING:
    from epochcast.client import Client
    from epochcast.events import Log

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: epochcast logs 42 --follow --level WARNING")(logs)
    app.command(epilog="Example: epochcast metrics 42 --plot")(metrics)


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until the job ends.")] = False,
    level: Annotated[str | None, typer.Option(help="Only this level and above, such as WARNING.")] = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Print a job's log lines; with --json, a line of JSON each."""
    least = _level(level)
    with client(url, token) as server:
        try:
            for line in _lines(server, job_id, least, follow):
                _print_line(line, as_json)
        except KeyboardInterrupt:
            if follow:
                print(f"\njob {job_id} keeps running", file=sys.stderr)
            raise typer.Exit(130) from None


def _level(level: str | None) -> str | None:
    if level is not None and level.upper() not in LEVELS:
        raise typer.BadParameter(f"{level!r} is none; choose from {', '.join(LEVELS)}", param_hint="--level")
    return level and level.upper()


def _lines(server: "Client", job_id: int, level: str | None, follow: bool) -> Iterator["Log"]:
    """Following is one read from the log's beginning: with two, a line could fall between them or come twice."""
    if not follow:
        yield from server.logs(job_id, level=level)
        return
    least = LEVELS.index(level) if level else 0
    for message in server.watch(job_id, after="0"):
        if message.type == "log" and LEVELS.index(message.level) >= least:
            yield message


def _print_line(line: "Log", as_json: bool) -> None:
    if as_json:
        print_json(line)
        return
    for text in line.message.splitlines() or [""]:
        print(f"{line.timestamp:%Y-%m-%d %H:%M:%S} {line.level:<8} {plain(text)}", flush=True)


def metrics(
    job_id: JobId,
    plot: Annotated[bool, typer.Option("--plot", help="Draw them in the terminal.")] = False,
    max_points: Annotated[int | None, typer.Option(min=2, help="At most that many epochs; keeps extremes.")] = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Show a job's metrics epoch by epoch."""
    with client(url, token) as server:
        columns = server.metrics(job_id, max_points=max_points)
    if as_json:
        print_json(columns)
    elif not columns.get("epoch"):
        print(f"job {job_id} has reported no metrics yet")
    elif plot:
        draw(job_id, columns)
    else:
        print_table(list(columns), zip(*columns.values(), strict=True), nothing="")


def draw(job_id: int, columns: dict[str, list[Any]]) -> None:
    """One chart for the losses and one for each other metric: their scales have nothing to do with each other."""
    names = [name for name in columns if name not in ("epoch", "step")]
    losses = [name for name in names if "loss" in name]
    for group in (losses, *([name] for name in names if name not in losses)):
        if group:
            _chart(f"job {job_id}: {', '.join(group)}", columns, group)


MARKERS = "*+x#@%"


def _chart(title: str, columns: dict[str, list[Any]], names: list[str]) -> None:
    import plotext

    screen = console()
    figure = plotext.figure
    figure.clear()
    width = max(40, min(screen.width, 120))
    figure.plot_size(width, 16)
    figure.canvas("default")
    figure.title(plain(title))
    figure.label("epoch", 0)
    # Columns from the axis on, whose labels take up to ten. One curve is named by the title.
    figure.legend(len(names) > 1, x=width - 14, ha="right")
    is_coloured = screen.color_system is not None and not screen.no_color
    for number, name in enumerate(names):
        points = [
            (epoch, value) for epoch, value in zip(columns["epoch"], columns[name], strict=True) if value is not None
        ]
        if points:
            # Without colour the curves are told apart by their letters.
            marker = "braille" if is_coloured else MARKERS[number % len(MARKERS)]
            line = figure.signal(*(list(axis) for axis in zip(*points, strict=True)), marker=marker)
            figure.draw(line.lines().label(plain(name)))
    # Not figure.show(), which writes past sys.stdout to the file descriptor.
    print(figure.build().string(colorless=not is_coloured))
