"""Every error that leaves the gateway, as RFC 9457 problem+json: `type title status detail code errors[]`."""

import re
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.artifacts import ArtifactsUnavailable, FileMissing
from shared.database import DatabaseUnavailable
from shared.errors import (
    ArtifactNotFound,
    HostNotFound,
    IdempotencyConflict,
    IllegalTransition,
    JobNotFound,
    ModelNotFound,
    RecordError,
)
from shared.queries import InvalidCursor
from shared.recipes import UnknownRecipe

logger = structlog.get_logger(__name__)

RETRY_AFTER_S = 1
_MAX_SHOWN = 200


class Problem(Exception):
    """Raised when a request is refused; `detail` names the thing, the value and the way out."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})

    def response(self) -> Response:
        content = {
            "type": f"urn:epochcast:problem:{self.code}",
            "title": _title(self.status),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "errors": self.errors,
        }
        return Response(orjson.dumps(content), self.status, self.headers, media_type="application/problem+json")


def wrong_field(field: str, message: str, value: Any = None) -> Problem:
    """A 422 about one field of the body, such as `resources.nodes`."""
    return Problem(422, "invalid", f"{field}: {message}", errors=[_field_error(field, message, value)])


def wrong_fields(error: ValidationError | RequestValidationError, within: str = "") -> Problem:
    """A 422 that lists each wrong field; `within`: the field that the validated value stands in."""
    errors = [
        _field_error(
            _path((within, *one["loc"]) if within else one["loc"]),
            one["msg"].removeprefix("Value error, "),
            None if one["type"] == "missing" else one.get("input"),
        )
        for one in error.errors()
    ]
    first = errors[0]
    more = f" (and {len(errors) - 1} more, see errors)" if len(errors) > 1 else ""
    return Problem(422, "invalid", f"{first['field']}: {first['message']}{more}", errors=errors)


def not_found(detail: str) -> Problem:
    return Problem(404, "not_found", detail)


def install(app: FastAPI) -> None:
    """Makes every exception a problem, also those that the frameworks raise themselves."""
    app.add_exception_handler(Problem, _respond)
    for kind in _OF_EXCEPTION:
        app.add_exception_handler(kind, _respond)
    app.add_exception_handler(RequestValidationError, _respond)
    app.add_exception_handler(HTTPException, _respond)
    app.add_middleware(CatchAll)


async def _respond(request: Request, exception: Exception) -> Response:
    return problem_of(request, exception).response()


def problem_of(request: Request, exception: Exception) -> Problem:
    match exception:
        case Problem():
            return exception
        case HTTPException():
            return _of_http_exception(request, exception)
        case RequestValidationError():
            return _of_request(request, exception)
        case DatabaseUnavailable():
            # The driver's words may name hosts and users of the database: for the operator only.
            logger.warning("SQL is away", path=request.url.path, error=str(exception))
        case RedisError():
            logger.warning("Redis is away", path=request.url.path, error=str(exception))
        case ArtifactsUnavailable():
            logger.warning("the artifact store is away", path=request.url.path, error=str(exception))
    status, code, detail = next(_OF_EXCEPTION[kind] for kind in type(exception).__mro__ if kind in _OF_EXCEPTION)
    retry = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    return Problem(status, code, detail or str(exception), headers=retry)


# Status, code and detail (None: the exception's own words, which are fit for the user).
_OF_EXCEPTION: dict[type[Any], tuple[int, str, str | None]] = {
    JobNotFound: (404, "not_found", None),
    ModelNotFound: (404, "not_found", None),
    ArtifactNotFound: (404, "not_found", None),
    HostNotFound: (404, "not_found", None),
    UnknownRecipe: (404, "not_found", None),
    IllegalTransition: (409, "illegal_transition", None),
    IdempotencyConflict: (422, "idempotency_conflict", None),
    RecordError: (409, "refused", None),
    InvalidCursor: (422, "invalid_cursor", None),
    DatabaseUnavailable: (503, "database_unavailable", "the database can't be reached now; try again"),
    RedisError: (503, "events_unavailable", "the event log can't be reached now; try again"),
    FileMissing: (503, "file_missing", "the file is on record, but the artifact store doesn't have it"),
    ArtifactsUnavailable: (503, "artifacts_unavailable", "the artifact store can't be reached now; try again"),
}


def _of_http_exception(request: Request, exception: HTTPException) -> Problem:
    path, status = request.url.path, exception.status_code
    headers = exception.headers
    match status:
        case 404:
            return not_found(f"{path[:_MAX_SHOWN]} does not exist; the API is under /api/v1, see /api/v1/openapi.json")
        case 405:
            allowed = (headers or {}).get("Allow", "other methods")
            detail = f"{request.method} is not possible on {path[:_MAX_SHOWN]}; allowed: {allowed}"
            return Problem(405, "method_not_allowed", detail, headers=headers)
    code = re.sub(r"[^a-z]+", "_", _title(status).lower())
    return Problem(status, code, str(exception.detail), headers=headers)


def _of_request(request: Request, exception: RequestValidationError) -> Problem:
    for one in exception.errors():
        if one["loc"][0] == "path":
            # A malformed id names nothing that exists.
            noun = str(one["loc"][-1]).removesuffix("_id")
            return not_found(f"{noun} {str(one.get('input'))[:_MAX_SHOWN]} does not exist")
    return wrong_fields(exception)


def _path(location: Sequence[int | str]) -> str:
    """`("hyperparameters", "layers", 0)` as `hyperparameters.layers[0]`."""
    # FastAPI puts the part of the request in front; the parameter's name says enough.
    parts = location[1:] if len(location) > 1 and location[0] in ("query", "header", "body") else location
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return path.lstrip(".") or "body"


def _field_error(field: str, message: str, value: Any) -> dict[str, Any]:
    error = {"field": field, "message": message}
    if value is None:
        return error
    shown = value if isinstance(value, bool | int | float) else str(value)[:_MAX_SHOWN]
    try:
        # NaN would become null, an integer over 64 bits is refused, and so is a lone surrogate.
        return error | {"value": shown if orjson.dumps(shown) != b"null" else str(shown)}
    except TypeError:
        return error | {"value": str(shown).encode(errors="replace").decode()[:_MAX_SHOWN]}


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


class CatchAll:
    """Answers what nobody caught with a 500 problem that carries an id; the log has the traceback under that id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            identifier = secrets.token_hex(6)
            logger.exception("unhandled error", error_id=identifier, method=scope["method"], path=scope["path"])
            if started:
                raise
            detail = f"an error of the gateway itself; its log has it under {identifier}"
            await Problem(500, "internal", detail).response()(scope, receive, send)
