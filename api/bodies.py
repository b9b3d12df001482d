"""JSON bodies: type, size and syntax checked before anything is made of them."""

from typing import Any

import orjson
from fastapi import Request

from api.gate import MAX_BODY_BYTES, too_large
from api.problems import Problem

MAX_DEPTH = 64


async def read_json(request: Request) -> Any:
    """The body, or None where there is none. Raises a 413, 415 or 422 problem."""
    content = await _read(request)
    if not content:
        return None
    kind = request.headers.get("content-type", "")
    if not _is_json(kind):
        detail = f"Content-Type {kind[:100]!r} can't be read here; send application/json"
        raise Problem(415, "unsupported_media_type", detail)
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        # orjson refuses NaN and Infinity, which JSON doesn't have.
        raise Problem(422, "invalid_json", f"the body is not JSON: {error}; NaN and Infinity are not JSON") from None
    if _is_deeper_than(MAX_DEPTH, body):
        raise Problem(422, "invalid_json", f"the body is nested deeper than {MAX_DEPTH} levels; make it flatter")
    return body


def _is_deeper_than(levels: int, value: Any) -> bool:
    """Level by level, because recursion is what such a body breaks."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not layer:
            return False
    return True


async def _read(request: Request) -> bytes:
    """The bytes, counted as they come: a chunked body doesn't announce its size."""
    content = bytearray()
    async for block in request.stream():
        content += block
        if len(content) > MAX_BODY_BYTES:
            raise too_large()
    return bytes(content)


def _is_json(content_type: str) -> bool:
    kind = content_type.split(";", 1)[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
