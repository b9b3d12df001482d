"""The trainer's stdout and stderr: read as they come, kept raw for the log artifact up to a limit."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from worker.lines import Level, LevelReader, LineSplitter

OUTPUT_KEPT_BYTES = 64 * 2**20
_READ_BYTES = 256 * 1024
# What tells why a script ended itself is at its end: argparse prints a usage of some lines and then its error.
_LAST_LINES = 6


class OutputFile:
    """The raw output of an attempt, at most 64 MiB; what comes after that is in the event log only."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._room = OUTPUT_KEPT_BYTES

    def write(self, block: bytes) -> None:
        """Raises OSError (disk full)."""
        self._file.write(block[: max(0, self._room)])
        self._room -= len(block)

    def close(self) -> None:
        self._file.close()


class OutputStream:
    """One pipe of a trainer, whose bytes are kept in `output`; `rank` other than 0 is named in each line.

    `last_lines`: the newest few that say something, without the rank.
    """

    def __init__(self, descriptor: int, rank: int, output: OutputFile) -> None:
        self.descriptor = descriptor
        self.is_closed = False
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._rank = rank
        self._output = output
        self._splitter = LineSplitter()
        self._levels = LevelReader()

    def read(self) -> Iterator[tuple[Level, str]]:
        """The lines that have come in, each with its level; at the pipe's end what stands behind the last newline."""
        try:
            block = os.read(self.descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        if block:
            self._output.write(block)
        else:
            self.is_closed = True
        for line in self._splitter.feed(block) if block else self._splitter.finish():
            if line.strip():
                self.last_lines.append(line)
            yield self._levels.level_of(line), named(line, self._rank)


def named(line: str, rank: int) -> str:
    """A log line with the rank it came from, unless that is 0, which speaks for all."""
    return f"[rank {rank}] {line}" if rank else line
