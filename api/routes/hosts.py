"""The fleet: which hosts there are, what they hold, and draining them."""

from typing import Annotated

import orjson
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, BeforeValidator
from starlette.responses import Response

from api.auth import HostAdmin, Reader
from api.gateway import Gateway, Here
from api.routes.parameters import plain_number
from epochcast.answers import Host
from epochcast.jobs import HOST_NAME, MAX_JOB_ID
from shared.fleet import Fleet

router = APIRouter(prefix="/hosts", tags=["hosts"])

Name = Annotated[str, Path(pattern=HOST_NAME)]
# `2025-01-07T10:15:00Z`, as everywhere.
_SECONDS = orjson.OPT_OMIT_MICROSECONDS | orjson.OPT_UTC_Z
# What a page costs grows with it, and a gateway that has not answered in 2 s gives up.
PAGE = 1_000


class HostList(BaseModel):
    items: list[Host]
    next_cursor: str | None


@router.get("", response_model=HostList)
async def list_hosts(
    gateway: Here,
    _identity: Reader,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
    cursor: Annotated[str | None, Query(pattern=HOST_NAME, description="next_cursor of the page before")] = None,
    job_id: Annotated[int | None, BeforeValidator(plain_number), Query(ge=1, le=MAX_JOB_ID)] = None,
) -> Response:
    """Every host that ever registered, by name; `status` is `ready`, `draining` or `unreachable`.

    `job_id`: only those where this job has a place.
    """
    return Response(await gateway.record(_page, gateway.fleet, limit, cursor, job_id), media_type="application/json")


def _page(fleet: Fleet, limit: int, cursor: str | None, job_id: int | None) -> bytes:
    """Written here, in a thread and as the record has it: as objects, a thousand hosts with eight GPUs each would hold
    up the event loop, and with it every socket, for 0.2 s."""
    items, next_cursor = fleet.page(limit, cursor, job_id)
    return orjson.dumps({"items": items, "next_cursor": next_cursor}, option=_SECONDS)


@router.post("/{name}/drain")
async def drain(gateway: Here, _identity: HostAdmin, name: Name) -> Host:
    """No new job for this host; what it runs goes on."""
    return await _set_draining(gateway, name, True)


@router.post("/{name}/resume")
async def resume(gateway: Here, _identity: HostAdmin, name: Name) -> Host:
    """Takes jobs again."""
    return await _set_draining(gateway, name, False)


async def _set_draining(gateway: Gateway, name: str, draining: bool) -> Host:
    await gateway.record(gateway.fleet.set_draining, name, draining)
    gateway.dispatcher.wake()
    return Host.model_validate(await gateway.record(gateway.fleet.host, name))
