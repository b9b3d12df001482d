"""What every request and socket passes before any route: Host, Origin and size of the body."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import Problem
from shared.settings import LOOPBACK_NAMES, Settings

MAX_BODY_BYTES = 1024 * 1024
MAX_BUNDLE_BYTES = 256 * 1024 * 1024
_CODE = "/api/v1/code"
# Probes and scrapers come by address, not by name.
_ANY_HOST = frozenset({"/healthz", "/readyz", "/metrics"})


class Gate:
    """Refuses foreign Hosts (DNS rebinding), foreign Origins (another site) and bodies announced too large."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        problem = self._refusal(scope)
        if problem is None:
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            # Closing before accept is the handshake's HTTP 403.
            return await send({"type": "websocket.close", "code": 1008, "reason": problem.code})
        return await problem.response()(scope, receive, send)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if scope["path"] not in _ANY_HOST and not self.serves(host):
            detail = f"Host {host[:200]!r} is not served here; add it to EPOCHCAST_ALLOWED_HOSTS"
            return Problem(400, "foreign_host", detail)
        origin = headers.get("origin")
        if origin is not None and not self.allows_origin(origin, host):
            detail = f"Origin {origin[:200]!r} may not use this gateway; add it to EPOCHCAST_ALLOWED_ORIGINS"
            return Problem(403, "foreign_origin", detail)
        announced = headers.get("content-length", "0")
        if announced.isascii() and announced.isdigit() and int(announced[:20]) > _limit(scope["path"]):
            return too_large(_limit(scope["path"]))
        return None

    def serves(self, host: str) -> bool:
        """Whether the gateway goes by this name, as a `Host` header has it."""
        name, _port = _split(host)
        return "*" in self._hosts or name in self._hosts

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether `origin` is the gateway itself (as the request's Host names it), or one of the settings."""
        if origin.lower() in self._origins or "*" in self._origins:
            return True
        try:
            parts = urlsplit(origin.lower())
        except ValueError:
            return False
        if parts.scheme not in ("http", "https"):
            return False
        return _as_one(*_split(parts.netloc, parts.scheme)) == _as_one(*_split(host, parts.scheme))


def _limit(path: str) -> int:
    return MAX_BUNDLE_BYTES if path == _CODE else MAX_BODY_BYTES


def too_large(limit: int = MAX_BODY_BYTES) -> Problem:
    return Problem(413, "too_large", f"the body has more than {limit} bytes ({limit // 2**20} MiB)")


def _split(host: str, scheme: str = "http") -> tuple[str, str]:
    """`[::1]:8000` as name and port; the scheme's own port where none is named."""
    name, colon, port = host.lower().rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host.lower(), ""
    return name, port or {"http": "80", "https": "443"}[scheme]


def _as_one(name: str, port: str) -> tuple[str, str]:
    """A page that was opened as localhost may call 127.0.0.1: on loopback the names are one."""
    return ("localhost", port) if name in LOOPBACK_NAMES else (name, port)
