"""The fleet: which hosts there are, what they hold, and draining them."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel

from api.auth import HostAdmin, Reader
from api.gateway import Gateway, Here
from epochcast.answers import Host
from epochcast.jobs import HOST_NAME

router = APIRouter(prefix="/hosts", tags=["hosts"])

Name = Annotated[str, Path(pattern=HOST_NAME)]


class HostList(BaseModel):
    items: list[Host]


@router.get("")
async def list_hosts(gateway: Here, _identity: Reader) -> HostList:
    """Every host that ever registered; `status` is `ready`, `draining` or `unreachable`."""
    return HostList(items=await _hosts(gateway))


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
    return next(host for host in await _hosts(gateway) if host.name == name)


async def _hosts(gateway: Gateway) -> list[Host]:
    return [Host.model_validate(host) for host in await gateway.record(gateway.fleet.hosts)]
