"""`--watch` of the commands that list: the table again and again, repainted in place until Ctrl-C."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from epochcast.cli.output import console, plain, print_json
from epochcast.errors import EpochcastError, Refused, Unreachable, UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

EVERY_S = 2.0


def repaint(
    fetch: "Callable[[], Sequence[Any]]", picture: "Callable[[Sequence[Any]], RenderableType]", *, as_json: bool
) -> NoReturn:
    """Shows what `fetch` gives, every two seconds. A server that is away is said below the table, and waited for.

    With `as_json`: a line whenever it has changed, the rest on stderr. Raises UsageError where there is no terminal to
    repaint.
    """
    screen = console()
    if not as_json and (not screen.is_terminal or screen.is_dumb_terminal):
        raise UsageError(
            "--watch repaints a table, which needs a terminal; with --json it prints a line at each change"
        )
    try:
        if as_json:
            _print_changes(fetch)
        _paint(screen, fetch, picture)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _print_changes(fetch: "Callable[[], Sequence[Any]]") -> NoReturn:
    shown = fetch()
    print_json(shown)
    is_away = False
    while True:
        time.sleep(EVERY_S)
        try:
            found = fetch()
        except EpochcastError as error:
            if not _may_pass(error):
                raise
            if not is_away:
                print(f"epochcast: {plain(error)}; what was printed last may be old", file=sys.stderr, flush=True)
            is_away = True
            continue
        is_away = False
        if found != shown:
            print_json(found)
            shown = found


def _paint(
    screen: "Console", fetch: "Callable[[], Sequence[Any]]", picture: "Callable[[Sequence[Any]], RenderableType]"
) -> NoReturn:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    found = fetch()
    with Live(console=screen, auto_refresh=False, vertical_overflow="ellipsis") as live:
        while True:
            live.update(picture(found), refresh=True)
            time.sleep(EVERY_S)
            try:
                found = fetch()
            except EpochcastError as error:
                if not _may_pass(error):
                    raise
                notice = Text(f"{plain(error)}; what is above may be old", style="yellow")
                live.update(Group(picture(found), notice), refresh=True)
                time.sleep(EVERY_S)


def _may_pass(error: EpochcastError) -> bool:
    return isinstance(error, Unreachable) or (isinstance(error, Refused) and error.problem.status >= 500)
