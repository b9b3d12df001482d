"""From a trainer's stdout and stderr to log lines: cut, decoded and rated, whatever the script prints."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from epochcast.events import MAX_LOG_BYTES

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
MAX_LINES_PER_S = 1000
CUT_MARK = " … [line cut at 8 KiB]"

# Colours and cursor movements (ECMA-48 control sequences) mean nothing in a log.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]|[\x00-\x08\x0b-\x1f\x7f]"
)
_NAMED_LEVEL = re.compile(r"^[\[(]?(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)\b", re.IGNORECASE)
_NAMES: dict[str, Level] = {
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "WARN": "WARNING",
    "WARNING": "WARNING",
    "ERROR": "ERROR",
    "CRITICAL": "CRITICAL",
    "FATAL": "CRITICAL",
}


@dataclass(slots=True)
class LineSplitter:
    """Bytes of one stream to lines. Never holds more than 8 KiB of an unfinished line."""

    _line: bytearray = field(default_factory=bytearray)
    _cut: bool = False

    def feed(self, block: bytes) -> Iterator[str]:
        *finished, rest = block.split(b"\n")
        for part in finished:
            self._add(part)
            yield from self._take()
        self._add(rest)

    def finish(self) -> Iterator[str]:
        """What stands behind the last newline."""
        if self._line:
            yield from self._take()

    def _add(self, part: bytes) -> None:
        room = MAX_LOG_BYTES - len(self._line)
        if len(part) > room:
            self._cut = True
        self._line += part[: max(0, room)]

    def _take(self) -> Iterator[str]:
        text = self._line.decode("utf-8", "replace")
        # A progress bar rewrites its line with carriage returns; its last state is the line.
        text = text.rstrip("\r").rsplit("\r", 1)[-1]
        cut, self._cut = self._cut, False
        self._line.clear()
        text = clean(text)
        if text.strip():
            yield text + (CUT_MARK if cut else "")


def clean(text: str) -> str:
    """The text without control sequences, on one line, of at most 8 KiB (and a mark)."""
    text = _CONTROL.sub("", text.replace("\n", " ")).encode("utf-8", "replace").decode()
    if len(text) <= MAX_LOG_BYTES // 4 or len(text.encode()) <= MAX_LOG_BYTES + len(CUT_MARK.encode()):
        return text
    return text.encode()[:MAX_LOG_BYTES].decode("utf-8", "ignore") + CUT_MARK


def level_of(line: str, default: Level) -> Level:
    """The level that a line names at its start (`WARNING: …`), else `default`."""
    named = _NAMED_LEVEL.match(line)
    return _NAMES[named[1].upper()] if named else default


@dataclass(slots=True)
class LevelReader:
    """The level of each line of one stream: what the line itself names, ERROR for a traceback, else INFO."""

    _in_traceback: bool = False

    def level_of(self, line: str) -> Level:
        if line.startswith("Traceback (most recent call last):"):
            self._in_traceback = True
        elif self._in_traceback and not line.startswith((" ", "\t")):
            self._in_traceback = False  # the exception itself, the traceback's last line
            return "ERROR"
        return "ERROR" if self._in_traceback else level_of(line, "INFO")


@dataclass(slots=True)
class RateLimit:
    """At most 1,000 lines in each second; says afterwards how many were dropped."""

    clock: Callable[[], float] = time.monotonic
    limit: int = MAX_LINES_PER_S
    _second: int = -1
    _passed: int = 0
    _dropped: int = 0

    def admits(self) -> bool:
        second = int(self.clock())
        if second != self._second:
            self._second, self._passed = second, 0
        self._passed += 1
        if self._passed > self.limit:
            self._dropped += 1
            return False
        return True

    def take_dropped(self) -> int:
        """How many lines were dropped in seconds that are over; 0 while the flood goes on."""
        if self._dropped == 0 or int(self.clock()) == self._second:
            return 0
        dropped, self._dropped = self._dropped, 0
        return dropped
