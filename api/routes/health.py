"""Whether this gateway lives, can serve, and how it has been doing. Outside `/api/v1`, without token and Host check."""

import contextlib

from fastapi import APIRouter
from redis.exceptions import RedisError
from starlette.responses import Response

from api.gateway import Gateway, Here
from epochcast.answers import Health
from shared.errors import JobNotFound

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def alive() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(gateway: Here) -> Health:
    """503 without SQL. Without Redis everything but live events still answers: `degraded`."""
    with contextlib.suppress(JobNotFound):
        # A real read: a database without our tables is not ready.
        await gateway.record(gateway.store.owner, 0)
    missing = [] if await _redis_answers(gateway) else ["redis"]
    return Health(status="degraded" if missing else "ok", degraded=missing)


async def _redis_answers(gateway: Gateway) -> bool:
    try:
        await gateway.redis.ping()
    except RedisError:
        return False
    return True


@router.get("/metrics", include_in_schema=False)
async def metrics(gateway: Here) -> Response:
    """Prometheus' text format."""
    content, kind = await gateway.telemetry.scrape(gateway)
    return Response(content, media_type=kind)
