"""Files of the artifact store as HTTP answers: whole, or one range of them."""

import re
from collections.abc import Iterator

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from api.gateway import Gateway
from api.problems import Problem


async def file_response(
    request: Request, gateway: Gateway, *, key: str, size: int, sha256: str, filename: str
) -> Response:
    """200 or 206 (`Range`, one range), 304 (`If-None-Match`), 416. Raises FileMissing, ArtifactsUnavailable."""
    etag = f'"{sha256}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Content-Disposition": f'attachment; filename="{_safe(filename)}"',
        "X-Content-Type-Options": "nosniff",
    }
    if etag in (part.strip() for part in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range")
    # A range of another version of the file would be glued to the wrong beginning.
    if wanted is not None and request.headers.get("if-range", etag) != etag:
        wanted = None
    part = _range(wanted, size, headers)
    status, (start, end) = (200, (0, size)) if part is None else (206, part)
    headers["Content-Length"] = str(end - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    blocks = gateway.artifacts.stream(key, start, end)
    # The first block now: after the headers have gone there is no way to say that the file is missing.
    first = await gateway.in_thread(next, blocks, b"")
    return StreamingResponse(
        _chain(first, blocks), status_code=status, headers=headers, media_type="application/octet-stream"
    )


_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)


def _range(wanted: str | None, size: int, headers: dict[str, str]) -> tuple[int, int] | None:
    """Start and end (exclusive) of what to send; None: all of it, for anything but one range of bytes (RFC 9110)."""
    found = _RANGE.fullmatch(wanted) if wanted is not None else None
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start, end = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
    if start >= end:
        detail = f"Range {wanted!r} is outside the file, which has {size} bytes"
        raise Problem(416, "range_not_satisfiable", detail, headers={**headers, "Content-Range": f"bytes */{size}"})
    return start, end


def _safe(filename: str) -> str:
    """`filename` without anything that a header or a file system could take for something else."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", filename).strip("-.")[:150] or "file"


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
