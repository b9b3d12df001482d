"""Bundles: a user's own code, uploaded once, checked whole before anything of it is kept."""

import tempfile
from functools import partial
from pathlib import Path
from typing import IO

import anyio.to_thread
import orjson
import structlog
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api.auth import Uploader
from api.gate import MAX_BUNDLE_BYTES, too_large
from api.gateway import Gateway, Here
from api.problems import RETRY_AFTER_S, Problem
from epochcast.answers import Bundle
from shared.bundle_archive import BundleRefused, Kind, unpack
from shared.bundle_content import BundleContent, key_of, pack

logger = structlog.get_logger(__name__)

router = APIRouter(prefix="/code", tags=["code"])

_KINDS: dict[str, Kind] = {"application/gzip": "tar", "application/x-gzip": "tar", "application/zip": "zip"}
_ARCHIVE = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "",
    status_code=201,
    response_model=Bundle,
    openapi_extra={"requestBody": {"content": {"application/gzip": _ARCHIVE, "application/zip": _ARCHIVE}}},
)
async def upload(request: Request, gateway: Here, identity: Uploader) -> Response:
    """Keeps a folder of code under the hash of its content; 200 when this owner uploaded the same before."""
    kind = _kind(request)
    try:
        with tempfile.NamedTemporaryFile(prefix="epochcast-upload-") as file:
            await _receive(request, gateway, file.file)
            check = partial(_check_and_store, gateway, Path(file.name), kind)
            content = await anyio.to_thread.run_sync(check, limiter=gateway.unpacking)
    except BundleRefused as error:
        errors = [{"field": error.member or "body", "message": error.reason}]
        raise Problem(422, "bundle_refused", str(error), errors=errors) from None
    except ClientDisconnect:
        raise Problem(400, "incomplete_body", "the connection broke before the whole archive was here") from None
    except OSError as error:
        logger.error("an upload could not be unpacked", error=str(error))
        detail = "the gateway has no room to unpack the archive now; try again"
        raise Problem(503, "no_room", detail, headers={"Retry-After": str(RETRY_AFTER_S)}) from error
    is_new = await gateway.record(gateway.bundles.add, content, identity.owner)
    answer = Bundle(bundle=content.name, files=len(content.files), bytes=content.bytes)
    return Response(orjson.dumps(answer.model_dump()), 201 if is_new else 200, media_type="application/json")


def _kind(request: Request) -> Kind:
    sent = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if sent not in _KINDS:
        detail = f"Content-Type {sent[:100]!r} can't be read here; send application/gzip (a tar.gz) or application/zip"
        raise Problem(415, "unsupported_media_type", detail)
    return _KINDS[sent]


async def _receive(request: Request, gateway: Gateway, file: IO[bytes]) -> None:
    """The body to disk, counted as it comes."""
    received = 0
    async for block in request.stream():
        received += len(block)
        if received > MAX_BUNDLE_BYTES:
            raise too_large(MAX_BUNDLE_BYTES)
        await gateway.in_thread(file.write, block)
    await gateway.in_thread(file.flush)


def _check_and_store(gateway: Gateway, archive: Path, kind: Kind) -> BundleContent:
    """The store sees only the canonical form of an archive that was found harmless to its last byte.

    Written also where it is known: that heals a file that was damaged there.
    """
    with tempfile.TemporaryDirectory(prefix="epochcast-bundle-") as name:
        folder, canonical = Path(name) / "content", Path(name) / "canonical.tar.gz"
        folder.mkdir()
        content = unpack(archive, kind, folder)
        pack(content, folder, canonical)
        gateway.artifacts.put(key_of(content.sha256), canonical)
        return content
