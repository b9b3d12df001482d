"""A typed error as people read it: what to do first, then where, the memory's numbers, and the last frames."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from epochcast.cli.output import plain, plain_lines

if TYPE_CHECKING:
    from epochcast.jobs import GpuMemory, JobError

FRAMES_SHOWN, DETAIL_LINES_SHOWN, CHARACTERS_SHOWN = 3, 6, 160
_LIBRARIES = ("site-packages/", "dist-packages/", "/lib/python3", "<frozen ")
_NAMES = ("requested", "free", "allocated", "reserved", "others", "total")


def place(error: "JobError") -> str | None:
    """`rank 0 on gpu-3 (NVIDIA H200), epoch 3, step 17`; None when nothing of it is known."""
    on = f"on {error.host}" if error.host else ""
    gpu = f"({error.gpu})" if error.gpu else ""
    rank = f"rank {error.rank}" if error.rank is not None else ""
    where = " ".join(part for part in (rank, on, gpu) if part)
    when = [f"{name} {number}" for name, number in (("epoch", error.epoch), ("step", error.step)) if number is not None]
    return plain(", ".join(part for part in (where, *when) if part)) or None


def memory_text(memory: "GpuMemory | None") -> str | None:
    """`requested 20.0, free 1.2, … total 139.8 GiB`; small numbers in MiB."""
    if memory is None:
        return None
    found = [(name, getattr(memory, f"{name}_gib")) for name in _NAMES]
    return ", ".join(f"{name} {_size(number)}" for name, number in found if number is not None) or None


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 or gib == 0 else f"{gib * 1024:.0f} MiB"


def summary(error: "JobError") -> Iterator[str]:
    """For the end of a watch, below the message: a screen's worth; `epochcast show` has the rest."""
    if error.verdict:
        yield f"  {plain(error.verdict)}"
    elif error.detail:
        yield from (f"  {line}" for line in plain_lines(error.detail)[:DETAIL_LINES_SHOWN])
    if (where := place(error)) is not None:
        yield f"  {where}"
    if (numbers := memory_text(error.memory)) is not None:
        yield f"  memory: {numbers}"
    # A line of code may hold a whole text; a watch's end should still fit the screen.
    yield from (f"  {_cut(plain(line))}" for line in last_frames(error.traceback))


def _cut(line: str) -> str:
    return line if len(line) <= CHARACTERS_SHOWN else line[: CHARACTERS_SHOWN - 2] + " …"


def last_frames(traceback: str | None, count: int = FRAMES_SHOWN) -> list[str]:
    """The last frames of a traceback with their lines of code, without the exception that the message names.

    Of the user's own files; of libraries only where there are no others.
    """
    frames: list[list[str]] = []
    inside = False
    for line in (traceback or "").splitlines():
        if line.lstrip().startswith('File "'):
            frames.append([line])
            inside = True
        elif inside and line.startswith(" "):
            frames[-1].append(line)
        else:
            inside = False
    own = [frame for frame in frames if not any(mark in frame[0] for mark in _LIBRARIES)]
    return [line for frame in (own or frames)[-count:] for line in frame]
