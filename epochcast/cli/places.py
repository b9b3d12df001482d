"""What no message tells of a watched job, asked from time to time beside them: where it runs, or why it waits."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from epochcast.cli.output import plain
from epochcast.errors import EpochcastError

if TYPE_CHECKING:
    from epochcast.answers import Host
    from epochcast.async_client import AsyncClient
    from epochcast.cli.board import Board

EVERY_S = 10.0
"""Hosts tell their load every few seconds."""
LOOK_S = 0.5
LINES_SHOWN = 4
WHY_S = 2.0
"""A submission's reason is there after the first pass over the queue, and changes with it."""


def shown_places(
    client: "AsyncClient", board: "Callable[[], Board]", show: Callable[[tuple[str, ...]], None]
) -> AbstractAsyncContextManager[None]:
    """While inside, `show` gets the lines of a running job, anew for each attempt and every ten seconds."""
    return _beside(_ask_where(client, board, show))


def told_reasons(
    client: "AsyncClient", board: "Callable[[], Board]", tell: Callable[[str | None], None]
) -> AbstractAsyncContextManager[None]:
    """While inside, `tell` gets why a queued job waits, whenever that has changed."""
    return _beside(_ask_why(client, board, tell))


@asynccontextmanager
async def _beside(asking: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(asking)
    try:
        yield
    finally:
        task.cancel()


async def _ask_where(
    client: "AsyncClient", board: "Callable[[], Board]", show: Callable[[tuple[str, ...]], None]
) -> None:
    loop = asyncio.get_running_loop()
    asked_at, attempt = float("-inf"), None
    while True:
        now = board()
        if now.status == "running" and (now.attempt != attempt or loop.time() - asked_at > EVERY_S):
            asked_at, attempt = loop.time(), now.attempt
            try:
                show(lines(await client.hosts(job_id=now.job_id), now.job_id))
            except EpochcastError:
                show(())  # an ornament: the messages tell what is wrong with the server
        await asyncio.sleep(LOOK_S)


async def _ask_why(client: "AsyncClient", board: "Callable[[], Board]", tell: Callable[[str | None], None]) -> None:
    while True:
        await asyncio.sleep(WHY_S)
        if board().status != "queued":
            continue
        try:
            job = await client.job(board().job_id)
        except EpochcastError:
            continue  # the messages tell what is wrong with the server
        if job.status == board().status == "queued" and job.pending_reason != board().pending_reason:
            tell(job.pending_reason)


def lines(hosts: "Sequence[Host]", job_id: int) -> tuple[str, ...]:
    """`GPU 0 on gpu-3: H200, 97 %, 120.1/139.8 GiB`, for each of the job's GPUs; without GPUs, its hosts' CPU."""
    found = [
        f"GPU {gpu.index} on {plain(host.name)}: {plain(gpu.name)}{_percent(gpu.utilisation_percent)}, "
        f"{gpu.memory.used_gib:g}/{gpu.memory.total_gib:g} GiB"
        for host in hosts
        for gpu in host.gpus
        if gpu.job_id == job_id
    ] or [
        f"on {plain(host.name)}: {host.cpu.cores} cores{_percent(host.cpu.percent)}, "
        f"memory {host.memory.used_gib:g}/{host.memory.total_gib:g} GiB"
        for host in hosts
        if job_id in host.jobs
    ]
    rest = len(found) - LINES_SHOWN
    return (*found[:LINES_SHOWN], *((f"and {rest} more",) if rest > 0 else ()))


def _percent(value: float | None) -> str:
    return "" if value is None else f", {value:.0f} %"
