"""A job followed and shown live, wherever this runs: below a notebook's cell, on a terminal, or as lines in a file."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

from epochcast import notebook
from epochcast.cli.board import POINTS, Board, apply, board_of, notice_text, with_history
from epochcast.cli.watch import display, outcome

if TYPE_CHECKING:
    from epochcast.async_client import AsyncClient
    from epochcast.following import Message, Notice

TICK_S = 0.25


async def begin(client: "AsyncClient", job_id: int) -> Board:
    """The job now, with the curve of the epochs before."""
    board = board_of(await client.job(job_id))
    if board.current_epoch == 0:
        return board
    return with_history(board, await client.metrics(job_id, max_points=POINTS))


class Showing:
    """A board that messages and notices change. Notices may come from another thread."""

    def __init__(self, board: Board, show: "Callable[[Board, Message | None], None]") -> None:
        self.board = board
        self._show = show
        self._notices: SimpleQueue[Notice] = SimpleQueue()
        show(board, None)

    def notice(self, notice: "Notice") -> None:
        self._notices.put(notice)

    def take(self, message: "Message | None") -> None:
        """None: a moment has passed in which nothing came."""
        while not self._notices.empty():
            self.board = replace(self.board, notice=notice_text(self._notices.get()))
        if message is not None:
            self.board = apply(self.board, message)
        self._show(self.board, message)


@contextmanager
def showing(board: Board) -> Iterator[Showing]:
    """Leaves the last picture standing; outside a notebook also the line that says how it ended."""
    if notebook.is_here():
        with notebook.shown() as show:
            yield Showing(board, show)
        return
    with display(as_json=False) as show:
        shown = Showing(board, show)
        yield shown
    if shown.board.status.is_terminal:
        print(outcome(shown.board))


async def with_ticks(
    messages: "AsyncGenerator[Message, None]", every_s: float = TICK_S
) -> "AsyncGenerator[Message | None, None]":
    """The messages, and None whenever none came for so long: whoever paints can then paint what it held back."""
    following = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(messages, None))
            done, _ = await asyncio.wait({following}, timeout=every_s)
            if not done:
                yield None
                continue
            message, following = following.result(), None
            if message is None:
                return
            yield message
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait({following})
        await messages.aclose()
