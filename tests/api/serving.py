"""Gateways for tests: in a thread, with shortened limits; or as a process of its own, which can be killed."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis.asyncio
import uvicorn
from fastapi import FastAPI
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from api import stream
from api.auth import Authenticator
from api.gate import Gate
from api.limits import Limits
from api.relay import Relay
from api.server import open_listener, uvicorn_config
from shared.database import Database
from shared.embedded import free_port
from shared.processes import dies_with_parent
from shared.queries import Queries
from shared.settings import Settings, from_environment
from shared.store import Store
from tests.waiting import wait_until

CHECKOUT = Path(__file__).parents[2]
QUICK = Limits(
    reconcile_s=0.5, sweep_s=0.05, linger_s=0.2, feed_ping_s=0.2, feed_silence_s=0.6,
    redis_patience_s=0.4,
)  # fmt: skip


def relay_app(settings: Settings, limits: Limits) -> FastAPI:
    """The sockets without the rest of the gateway."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.database_url.get_secret_value(), patience_s=1.0, connections=20)
        client = redis.asyncio.Redis.from_url(
            settings.events_redis_url,
            socket_timeout=limits.redis_patience_s,
            socket_connect_timeout=limits.redis_patience_s,
            retry=Retry(NoBackoff(), 0),
        )
        relay = Relay(settings, Store(database), Queries(database), client, limits)
        app.state.relay = relay
        relay.start()
        yield
        await relay.stop()
        await client.aclose()
        database.close()
        app.state.left_over = [task for task in asyncio.all_tasks() if task.get_name() in ("feed", "slots", "sweep")]

    app = FastAPI(lifespan=lifespan)
    app.state.authenticator = Authenticator(settings)
    app.include_router(stream.router, prefix="/api/v1")
    app.add_middleware(Gate, settings=settings)
    return app


class ThreadGateway:
    """A gateway in this process."""

    def __init__(
        self,
        settings: Settings,
        limits: Limits = QUICK,
        *,
        ping_s: float | None = None,
        make_app: Callable[[Settings, Limits], FastAPI] = relay_app,
    ) -> None:
        if ping_s is not None:
            limits = replace(limits, ping_s=ping_s)
        self.app = make_app(settings, limits)
        self._listener = open_listener("127.0.0.1", 0)
        self.port: int = self._listener.getsockname()[1]
        config = uvicorn_config(self.app)
        if ping_s is not None:
            config.ws_ping_interval = config.ws_ping_timeout = ping_s
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="gateway")

    @property
    def relay(self) -> Relay:
        relay: Relay = self.app.state.relay
        return relay

    @property
    def connections(self) -> list[object]:
        """The protocols of all that are open."""
        return list(self._server.server_state.connections)

    def url(self, job_id: object, query: str = "", path: str = "ws") -> str:
        return f"ws://127.0.0.1:{self.port}/api/v1/training-jobs/{job_id}/{path}{query}"

    @property
    def fleet_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/api/v1/training-jobs/ws"

    def __enter__(self) -> "ThreadGateway":
        self._thread.start()
        wait_until(lambda: self._server.started, "the gateway's start", timeout_s=30)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive(), "the gateway didn't stop"
        assert not getattr(self.app.state, "left_over", None), self.app.state.left_over


@contextmanager
def gateway_process(settings: Settings) -> Iterator[tuple[subprocess.Popen[bytes], Callable[..., str]]]:
    """A gateway as its own process, and its URLs."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.api.serving", str(port)],
        cwd=CHECKOUT,
        env={**os.environ, **environment(settings)},
        preexec_fn=dies_with_parent(),
    )
    try:
        wait_until(lambda: _answers(port), "the gateway's port", timeout_s=60)
        yield process, lambda job_id, query="": f"ws://127.0.0.1:{port}/api/v1/training-jobs/{job_id}/ws{query}"
    finally:
        process.kill()
        process.wait()


def environment(settings: Settings) -> dict[str, str]:
    """The settings as the environment of another process."""
    values: dict[str, Any] = {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "BROKER_URL": settings.broker_url.get_secret_value(),
        "AUTH": settings.auth,
    }
    return {f"EPOCHCAST_{name}": str(value) for name, value in values.items()}


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    settings = from_environment()
    app = relay_app(settings, replace(QUICK, slot_s=8.0, slot_refresh_s=2.0))
    uvicorn.Server(uvicorn_config(app)).run([open_listener("127.0.0.1", int(sys.argv[1]))])


if __name__ == "__main__":
    main()
