"""The whole gateway behind a real uvicorn in a thread, and a client that knows who it is."""

import secrets
import threading
from typing import Any, Self

import httpx2
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.limits import Limits
from api.server import open_listener, uvicorn_config
from shared import tokens
from shared.settings import Settings
from tests.waiting import wait_until

DIGITS: dict[str, Any] = {"recipe": "image-classifier", "hyperparameters": {"dataset": "digits"}}


class Served:
    """`app` on any free port of loopback."""

    def __init__(self, settings: Settings, app: FastAPI | None = None, limits: Limits | None = None) -> None:
        self.settings = settings
        self.app = app or create_app(settings, limits)
        self._listener = open_listener("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn_config(self.app))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="gateway")
        self._clients: list[httpx2.Client] = []

    def token(self, owner: str = "alice", *scopes: str) -> str:
        assert self.settings.secret is not None
        secret = self.settings.secret.get_secret_value()
        return tokens.create(owner, scopes or ("jobs:read", "jobs:write"), days=1, secret=secret)

    def stop(self) -> None:
        """As at SIGTERM; the open answers are told."""
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive(), "the gateway didn't stop"

    def client(self, owner: str | None = "alice", *scopes: str) -> httpx2.Client:
        """Somebody with a token of `scopes` (reading and writing jobs); None: without any."""
        headers = {"Authorization": f"Bearer {self.token(owner, *scopes)}"} if owner else {}
        client = httpx2.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60)
        self._clients.append(client)
        return client

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started, "the gateway's start", timeout_s=30)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self.stop()


def submit(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    """Submits the digits job; the answer. As our client does, again where SQLite's one lock was held for too long."""
    key = {"Idempotency-Key": secrets.token_hex(8)}

    def answered() -> httpx2.Response | None:
        answer = client.post("/api/v1/training-jobs", json=DIGITS | fields, headers=key)
        return None if answer.status_code == 503 else answer

    response = wait_until(answered, "a database that can be written", timeout_s=30)
    assert response is not None
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    return job


def problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem in an answer, after checking that it is one, whole."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content: dict[str, Any] = response.json()
    assert set(content) == {"type", "title", "status", "detail", "code", "errors"}
    assert (content["status"], content["code"]) == (status, code)
    assert content["title"]
    assert content["detail"]
    return content
