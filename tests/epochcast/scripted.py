"""A gateway that plays a script: each WebSocket and each GET gets the next answer that the test wrote down."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import orjson
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

Play = Callable[[ServerConnection], Awaitable[None]]


class ScriptedGateway:
    """Real sockets on loopback, in a thread. `plays`: what each WebSocket does, the last one again and again.

    `refusals`: (status, headers) with which the first handshakes are refused. `pages`: path to a list of JSON answers,
    the last one again and again; an int is an error status. Job 42 has an empty metrics history.
    """

    def __init__(
        self,
        *plays: Play,
        refusals: list[tuple[int, dict[str, str]]] | None = None,
        pages: dict[str, list[Any]] | None = None,
    ) -> None:
        self.plays = list(plays)
        self.refusals = list(refusals or [])
        every: dict[str, list[Any]] = {"/api/v1/training-jobs/42/metrics": [{"epoch": []}], **(pages or {})}
        self.pages = {path: list(answers) for path, answers in every.items()}
        self.handshakes: list[Request] = []
        self.gets: list[str] = []
        self.texts: list[str | bytes] = []
        self.url = ""

    def afters(self) -> list[str | None]:
        """The cursor of each handshake."""
        return [parse_qs(urlsplit(request.path).query).get("after", [None])[0] for request in self.handshakes]

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        assert started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive()

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.heard_three = asyncio.Event()
        server: Server
        async with serve(self._play, "127.0.0.1", 0, process_request=self._answer, ping_interval=None) as server:
            self.url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            started.set()
            await self._stop.wait()
            server.close(code=1012)

    async def _play(self, socket: ServerConnection) -> None:
        play = self.plays.pop(0) if len(self.plays) > 1 else self.plays[0]
        reading = asyncio.create_task(self._read(socket))
        try:
            await play(socket)
        finally:
            reading.cancel()

    async def _read(self, socket: ServerConnection) -> None:
        async for text in socket:
            self.texts.append(text)
            if len(self.texts) >= 3:
                self.heard_three.set()

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            self.handshakes.append(request)
            if self.refusals:
                status, headers = self.refusals.pop(0)
                refusal = connection.respond(HTTPStatus(status), "not now")
                refusal.headers.update(headers)
                return refusal
            return None
        self.gets.append(request.path)
        answers = self.pages.get(urlsplit(request.path).path, [404])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        status, content = (answer, _problem(answer)) if isinstance(answer, int) else (200, answer)
        body = orjson.dumps(content)
        fields = Headers({"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"})
        return Response(status, HTTPStatus(status).phrase, fields, body)


def _problem(status: int) -> dict[str, Any]:
    phrase = HTTPStatus(status).phrase
    return {"type": "about:blank", "title": phrase, "status": status, "detail": f"the script says {status}"}


# --- what the plays are made of


def message(seq: int, kind: str = "progress", *, generation: int = 1, **fields: Any) -> dict[str, Any]:
    """A message of job 42 as the gateway would send it."""
    common = {
        "type": kind,
        "id": f"{generation}-{seq}",
        "job_id": 42,
        "status": "running",
        "progress": min(seq, 10) / 10,
        "current_epoch": min(seq, 10),
        "total_epochs": 10,
        "timestamp": "2025-01-07T10:15:00Z",
    }
    extras: dict[str, dict[str, Any]] = {
        "progress": {"current_loss": 1 / (seq + 1)},
        "log": {"message": f"line {seq}", "level": "INFO"},
        "complete": {"status": "succeeded", "progress": 1.0, "model_id": 7, "final_metrics": {"val_loss": 0.1}},
        "error": {
            "status": "failed",
            "error_message": "CUDA out of memory",
            "error": {"type": "cuda_oom", "message": "CUDA out of memory"},
        },
    }
    return {**common, **extras[kind], **fields}


def job(status: str = "running", **fields: Any) -> dict[str, Any]:
    """Job 42 as `GET` returns it."""
    return {
        "job_id": 42,
        "name": "digits",
        "owner": "alice",
        "status": status,
        "progress": 0.1,
        "current_epoch": 1,
        "total_epochs": 10,
        "generation": 1,
        "spec": {"recipe": "image-classifier"},
        "last_event_id": "1-1",
        "created_at": "2025-01-07T10:14:00Z",
        "timestamp": "2025-01-07T10:15:00Z",
        **fields,
    }


def says(*messages: dict[str, Any], close: int | None = 1000, reason: str = "") -> Play:
    """Sends the messages, then closes; None: cuts the line (1006)."""

    async def play(socket: ServerConnection) -> None:
        for content in messages:
            await socket.send(orjson.dumps(content).decode())
        if close is None:
            socket.transport.abort()
        else:
            await socket.close(close, reason)

    return play


def stays(*messages: dict[str, Any]) -> Play:
    """Sends the messages and stays open until the client goes."""

    async def play(socket: ServerConnection) -> None:
        for content in messages:
            await socket.send(orjson.dumps(content).decode())
        await socket.wait_closed()

    return play
