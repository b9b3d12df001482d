"""Reads Server-Sent Events in tests, as the standard's parser does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.api.reading import Message


@dataclass
class Ended:
    """The event `close`, with which the gateway says why it ends a stream."""

    code: int
    reason: str


class Stream:
    """One open event stream."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()
        self.retry_ms: int | None = None
        self.comments = 0
        self.last_event_id: str | None = None
        self.ended: Ended | None = None

    def receive(self, count: int = 1) -> list[Message]:
        """The next messages; fewer when the stream ends before."""
        found: list[Message] = []
        while len(found) < count and (message := self._next()) is not None:
            found.append(message)
        return found

    def drain(self) -> tuple[list[Message], int, str]:
        """Every message up to the end, and how it ended."""
        messages = self.receive(10**9)
        assert self.ended is not None, f"ended without a word after {messages}"
        return messages, self.ended.code, self.ended.reason

    def until_comment(self) -> None:
        """Reads until the next sign of life; nothing else may come."""
        line = next(self._lines)
        while not line.startswith(":"):
            assert line == "" or line.startswith("retry:"), line
            line = next(self._lines)

    def _next(self) -> Message | None:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line == "" and "data" in fields:
                content: dict[str, Any] = json.loads(fields["data"])
                if fields.get("event") != "close":
                    return content
                self.ended = Ended(**content)
                fields = {}
            elif line.startswith(":"):
                self.comments += 1
            elif line:
                self._take(fields, *line.split(": ", 1))
        return None

    def _take(self, fields: dict[str, str], name: str, value: str) -> None:
        assert name in ("id", "data", "event", "retry"), name
        if name == "retry":
            self.retry_ms = int(value)
        elif name == "id":
            self.last_event_id = value
        fields[name] = value


@contextmanager
def streaming(client: httpx2.Client, path: str, **headers: str) -> Iterator[Stream]:
    """An answer that was accepted."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with client.stream("GET", path, headers={"Accept": "text/event-stream", **named}) as response:
        assert response.status_code == 200, response.read()
        yield Stream(response)
