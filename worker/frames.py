"""A traceback as its owner wants it: from their script on, without the libraries in the middle, never endless."""

import linecache
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from worker.causes import clean

LAST_FRAMES = 20
_GROUP_WIDTH = 5


def frames_of(error: BaseException, script: Path | None, folder: Path | None = None) -> str:
    """The traceback from `script` on. Files below `folder` are named from there, as their owner knows them."""
    try:
        summary = traceback.TracebackException.from_exception(
            error, lookup_lines=False, compact=True, max_group_width=_GROUP_WIDTH
        )
        linecache.checkcache()
        for link in _links(summary):
            link.stack = traceback.StackSummary.from_list(_shortened(list(link.stack), script))
        text = "".join(summary.format())
    except Exception as fault:  # exceptions of a user's own making may break what formats them
        text = f"{type(error).__name__} (its traceback can't be shown: {type(fault).__name__})"
    return clean(text if folder is None else text.replace(f'File "{folder}/', 'File "'))


def syntax_of(error: BaseException) -> str | None:
    """Of a syntax error: the place, the line and the caret below it."""
    if not isinstance(error, SyntaxError) or error.filename is None:
        return None
    shown = traceback.TracebackException(type(error), error, None, compact=True).format_exception_only()
    return clean("".join(shown)).strip("\n")


def _links(summary: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    seen: set[int] = set()
    waiting: list[traceback.TracebackException | None] = [summary]
    while waiting:
        link = waiting.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            waiting += [link.__cause__, link.__context__, *(link.exceptions or [])]


def _shortened(frames: list[traceback.FrameSummary], script: Path | None) -> list[traceback.FrameSummary]:
    if script is not None:
        begin = next((place for place, frame in enumerate(frames) if frame.filename == str(script)), None)
        # Without a frame of the script it never ran: a syntax error, say, and then our own frames explain nothing.
        frames = [] if begin is None and _is_ours(frames) else frames[begin or 0 :]
    if len(frames) > LAST_FRAMES:
        frames = [frame for frame in frames[:-1] if not _is_library(frame.filename)][1 - LAST_FRAMES :] + frames[-1:]
    return frames


def _is_ours(frames: list[traceback.FrameSummary]) -> bool:
    return bool(frames) and Path(frames[0].filename).parent == Path(__file__).parent


def _is_library(filename: str) -> bool:
    return "site-packages" in filename or filename.startswith(("<frozen", sysconfig.get_path("stdlib")))
