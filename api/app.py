"""The gateway as an ASGI application: `create_app(settings)`. Importing this opens nothing and reads no environment."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import redis
from fastapi import FastAPI, Request
from redis.backoff import NoBackoff
from redis.retry import Retry
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import epochcast
from api import asyncapi, page, problems, stream
from api.auth import Authenticator
from api.fast_lane import FastLane
from api.gate import Gate
from api.gateway import SQL_CONNECTIONS, SQL_PATIENCE_S, Gateway
from api.limits import Limits
from api.redis_client import open_client
from api.routes import code, health, history, hosts, jobs, models, recipes
from api.telemetry import Telemetry
from shared.celery_app import Poker
from shared.database import Database
from shared.dispatcher import Dispatcher
from shared.event_log import EventLog
from shared.settings import Settings

API = "/api/v1"
_DISPATCHER_PATIENCE_S = 2.0


class GatewayApp(FastAPI):
    """FastAPI behind its fast lane."""

    fast_lane: FastLane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not await self.fast_lane.answers(scope, send):
            await super().__call__(scope, receive, send)


def create_app(settings: Settings, limits: Limits | None = None, static: Path = page.STATIC) -> GatewayApp:
    """`limits`: the contract's, unless they are given. `static`: the built dashboard.

    Raises NoKeys when there is nothing to check tokens with.
    """
    app = GatewayApp(
        title="epochcast",
        version=epochcast.__version__,
        openapi_url=f"{API}/openapi.json",
        # The usual documentation pages load their code from elsewhere; this one works offline or not at all.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.limits = limits or Limits.of(settings)
    app.state.authenticator = Authenticator(settings)
    app.state.telemetry = Telemetry()
    app.fast_lane = FastLane(Gate(app, settings), app.state.authenticator, app.state.telemetry)
    # Sockets first: after a break thousands come at once. History before jobs: /training-jobs/metrics is no job.
    for routes in (stream, history, jobs, code, models, recipes, hosts, asyncapi):
        app.include_router(routes.router, prefix=API)
    app.include_router(health.router)
    app.include_router(page.router_for(static))

    async def lost(request: Request, exception: Exception) -> Response:
        """The page says in its own words that there is no such page."""
        if page.is_visit(request):
            return page.document_of(static, 404)
        return problems.problem_of(request, exception).response()

    app.add_exception_handler(404, lost)
    _install_middleware(app, settings)
    return app


def _install_middleware(app: FastAPI, settings: Settings) -> None:
    """The last one added is the first to see a request."""
    problems.install(app)
    app.add_middleware(
        CORSMiddleware,
        # The gate has refused every foreign Origin already; one that gets here may read the answer.
        allow_origin_regex=".*",
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Range"],
        expose_headers=["Content-Disposition", "Content-Range", "ETag", "Location", "Retry-After"],
    )
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(app.state.telemetry.middleware)


@asynccontextmanager
async def _lifespan(app: GatewayApp) -> AsyncIterator[None]:
    """Opens what the process holds. Neither SQL nor Redis has to be there: each request says what it misses."""
    settings: Settings = app.state.settings
    database = Database(
        settings.database_url.get_secret_value(), patience_s=SQL_PATIENCE_S, connections=SQL_CONNECTIONS
    )
    gateway = Gateway(
        settings=settings,
        database=database,
        redis=open_client(settings.events_redis_url),
        dispatcher=_dispatcher(settings, database),
        telemetry=app.state.telemetry,
        limits=app.state.limits,
    )
    app.state.gateway = gateway
    # The sockets know only the relay.
    app.state.relay = gateway.relay
    gateway.start()
    app.fast_lane.open(gateway.polls.by_path)
    try:
        yield
    finally:
        app.fast_lane.close()
        await gateway.close()


def _dispatcher(settings: Settings, database: Database) -> Dispatcher:
    client = redis.Redis.from_url(
        settings.events_redis_url,
        socket_timeout=_DISPATCHER_PATIENCE_S,
        socket_connect_timeout=_DISPATCHER_PATIENCE_S,
        retry=Retry(NoBackoff(), 0),
    )
    event_log = EventLog(client, kept_per_job=settings.events_kept_per_job, kept_s=settings.events_kept_s)
    return Dispatcher(settings, database, event_log, Poker(settings.broker_url.get_secret_value()))
