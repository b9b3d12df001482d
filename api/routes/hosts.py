"""The fleet: which hosts there are, what they hold, and draining them."""

from datetime import datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path
from pydantic import BaseModel
from starlette.responses import Response

from api.auth import HostAdmin, Reader
from api.gateway import Gateway, Here
from epochcast.answers import Host
from epochcast.jobs import HOST_NAME, utc_seconds

router = APIRouter(prefix="/hosts", tags=["hosts"])

Name = Annotated[str, Path(pattern=HOST_NAME)]


class HostList(BaseModel):
    items: list[Host]


@router.get("", response_model=HostList)
async def list_hosts(gateway: Here, _identity: Reader) -> Response:
    """Every host that ever registered; `status` is `ready`, `draining` or `unreachable`."""
    # Written as the record has it: as objects, a thousand hosts with eight GPUs each would hold up the event loop, and
    # with it every socket, for 0.2 s.
    return Response(orjson.dumps({"items": await _hosts(gateway)}), media_type="application/json")


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
    return next(Host.model_validate(host) for host in await _hosts(gateway) if host["name"] == name)


async def _hosts(gateway: Gateway) -> list[dict[str, Any]]:
    hosts = await gateway.record(gateway.fleet.hosts)
    return [
        host
        | {name: _shown(host[name]) for name in ("registered_at", "heartbeat_at")}
        | {"training": [one | {"reported_at": _shown(one["reported_at"])} for one in host["training"]]}
        for host in hosts
    ]


def _shown(moment: datetime | None) -> str | None:
    return None if moment is None else utc_seconds(moment)
