"""A real HTTP server on loopback that answers with what a test's function returns, and can cut the line."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


@dataclass
class Call:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """`cut_after`: the line is cut after that many bytes of the body."""

    status: int = 200
    content: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None


@dataclass
class Server:
    url: str
    calls: list[Call] = field(default_factory=list)


@contextmanager
def serving(answer: Callable[[Call], Answer]) -> Iterator[Server]:
    """Serves until the block ends; `calls` holds every request."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            call = Call(self.command, self.path, dict(self.headers), body)
            server.calls.append(call)
            self._send(answer(call))

        do_GET = do_POST = handle_any

        def _send(self, reply: Answer) -> None:
            content = reply.content if isinstance(reply.content, bytes) else orjson.dumps(reply.content)
            self.close_connection = True
            if reply.cut_after == 0:
                return
            kind = "application/problem+json" if reply.status >= 400 else "application/json"
            self.send_response(reply.status)
            for name, value in ({"Content-Type": kind, "Content-Length": str(len(content))} | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: reply.cut_after])

        def log_message(self, format: str, *_: Any) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
