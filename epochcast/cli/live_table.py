"""`--watch` of the commands that list: the table again and again, repainted in place until Ctrl-C."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from epochcast.cli.output import console, plain, print_json
from epochcast.errors import EpochcastError, UsageError, may_pass

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
        found = _fetched(fetch)
        was_away, is_away = is_away, isinstance(found, EpochcastError)
        if isinstance(found, EpochcastError):
            if not was_away:
                print(f"epochcast: {plain(found)}; what was printed last may be old", file=sys.stderr, flush=True)
        elif found != shown:
            print_json(found)
            shown = found


def _paint(
    screen: "Console", fetch: "Callable[[], Sequence[Any]]", picture: "Callable[[Sequence[Any]], RenderableType]"
) -> NoReturn:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    shown = fetch()
    with Live(console=screen, auto_refresh=False, vertical_overflow="ellipsis") as live:
        while True:
            live.update(picture(shown), refresh=True)
            time.sleep(EVERY_S)
            found = _fetched(fetch)
            if isinstance(found, EpochcastError):
                notice = Text(f"{plain(found)}; what is above may be old", style="yellow")
                live.update(Group(picture(shown), notice), refresh=True)
                time.sleep(EVERY_S)
            else:
                shown = found


def _fetched(fetch: "Callable[[], Sequence[Any]]") -> "Sequence[Any] | EpochcastError":
    """What `fetch` gives, or why it gives nothing now. Raises what will be no different later."""
    try:
        return fetch()
    except EpochcastError as error:
        if not may_pass(error):
            raise
        return error
