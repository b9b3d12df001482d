"""`watch`: follow a job to its end; live on a terminal, in plain lines elsewhere, in JSON lines for programs."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, aclosing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from epochcast.cli.failure import summary
from epochcast.cli.options import JobId, Json, Token, Url, async_client
from epochcast.cli.output import console, duration, metrics_text, plain
from epochcast.cli.places import shown_places, told_reasons

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from epochcast.cli.board import Board
    from epochcast.following import Message, Notice

After = Annotated[
    str | None, typer.Option(metavar="ID", help="Begin after this message's id; 0: with the whole history.")
]


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: epochcast watch 42")(watch)


def watch(job_id: JobId, after: After = None, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Follow a job live until it ends; the exit code is 0 when it succeeded, else 1.

    Lost connections are made again and nothing is missed. Ctrl-C leaves the job running.
    With --json every message is a line, as the server sent it.
    """
    follow(job_id, url, token, after=after, as_json=as_json)


def follow(job_id: int, url: str | None, token: str | None, *, after: str | None = None, as_json: bool) -> None:
    """Watches to the end and exits with the outcome."""
    try:
        board = asyncio.run(_follow(job_id, url, token, after, as_json))
    except KeyboardInterrupt:
        print(
            f"\njob {job_id} keeps running; watch it again with: epochcast watch {job_id}; "
            f"stop it with: epochcast stop {job_id}",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    if not as_json:
        print(outcome(board))
    raise typer.Exit(0 if board.status == "succeeded" else 1)


async def _follow(job_id: int, url: str | None, token: str | None, after: str | None, as_json: bool) -> "Board":
    from epochcast.cli.board import POINTS, apply, board_of, notice_text, with_history

    async with async_client(url, token) as server:
        board = board_of(await server.job(job_id))
        if board.current_epoch > 0 and after is None and _is_live(as_json):
            board = with_history(board, await server.metrics(job_id, max_points=POINTS))

        def notice(what: "Notice") -> None:
            nonlocal board
            board = replace(board, notice=notice_text(what))
            show(board, None)

        def placed(lines: tuple[str, ...]) -> None:
            nonlocal board
            board = replace(board, places=lines)
            show(board, None)

        def waits(reason: str | None) -> None:
            nonlocal board
            board = replace(board, pending_reason=reason)
            show(board, None)

        async with AsyncExitStack() as stack:
            show = stack.enter_context(display(as_json))
            if _is_live(as_json):
                await stack.enter_async_context(shown_places(server, lambda: board, placed))
            if not as_json:
                await stack.enter_async_context(told_reasons(server, lambda: board, waits))
            show(board, None)
            async with aclosing(server.watch(job_id, after=after, on_notice=notice)) as messages:
                async for message in messages:
                    board = apply(board, message)
                    show(board, message)
        if not board.status.is_terminal:  # nothing came after the given cursor
            board = board_of(await server.job(job_id))
    return board


Show = Callable[["Board", "Message | None"], None]


def display(as_json: bool) -> AbstractContextManager[Show]:
    if as_json:
        return _json_lines()
    return _live(console()) if _is_live(as_json) else _plain_lines()


def _is_live(as_json: bool) -> bool:
    screen = console()
    return not as_json and screen.is_terminal and not screen.is_dumb_terminal


@contextmanager
def _json_lines() -> Iterator[Show]:
    from epochcast.events import encode

    yield lambda _board, message: print(encode(message).decode(), flush=True) if message is not None else None


@contextmanager
def _live(screen: "Console") -> Iterator[Show]:
    """Repaints at most ten times a second, however fast the messages come, and leaves the last picture standing."""
    from rich.live import Live

    from epochcast.cli.live import picture

    latest: Board | None = None

    def paint() -> "RenderableType":
        return picture(latest, screen.width) if latest else ""

    def show(board: "Board", _message: "Message | None") -> None:
        nonlocal latest
        latest = board

    with Live(console=screen, get_renderable=paint, refresh_per_second=10):
        yield show


@contextmanager
def _plain_lines() -> Iterator[Show]:
    """One line for each epoch, change of status, warning and trouble: what a log file should hold."""
    told = ""

    def show(board: "Board", message: "Message | None") -> None:
        nonlocal told
        line = _line(board, message)
        if line and line != told:
            told = line
            print(line, flush=True)

    yield show


def _line(board: "Board", message: "Message | None") -> str | None:
    if message is None:
        if board.status == "queued" and board.pending_reason and not board.notice:
            return f"queued  {plain(board.pending_reason)}"
        return plain(board.notice) if board.notice else None
    if message.type == "log":
        return f"{message.level}: {plain(message.message)}" if message.level not in ("DEBUG", "INFO") else None
    if message.type != "progress":
        return None  # the outcome is told at the end
    parts = [f"{board.status}", f"epoch {board.current_epoch}/{board.total_epochs}", f"{board.progress:.0%}"]
    if board.metrics:
        parts.append(plain(metrics_text(board.metrics)))
    if board.eta_s is not None and board.status == "running":
        parts.append(f"ETA {duration(board.eta_s)}")
    if board.stop_requested and board.status == "running":
        parts.append("stopping")
    if board.pending_reason:
        parts.append(plain(board.pending_reason))
    return "  ".join(parts)


def outcome(board: "Board") -> str:
    """The last line of a watch: how it ended, and what to do next."""
    text = f"job {board.job_id} {board.status}"
    if board.duration_s is not None:
        text += f" in {duration(board.duration_s)}"
    if board.error_message:
        text += f": {plain(board.error_message)}"
        if board.error is not None:
            text = "\n".join((text, *summary(board.error)))
    elif board.metrics:
        text += f": {plain(metrics_text(board.metrics))}"
    match board.status:
        case "succeeded" if board.model_id is not None:
            text += f"\nmodel {board.model_id}; fetch it with: epochcast models download {board.model_id}"
        case "failed" | "stopped":
            whole = f"all of it: epochcast show {board.job_id}; " if board.error is not None else ""
            text += (
                f"\n{whole}its log: epochcast logs {board.job_id}; "
                f"again from its checkpoint: epochcast restart {board.job_id}"
            )
    return text
