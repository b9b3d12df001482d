"""Who asks and what they may do: one token check for header, WebSocket subprotocol and query."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

import anyio.to_thread
from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from api.problems import RETRY_AFTER_S, Problem
from shared.settings import Settings
from shared.tokens import SCOPES, ExpiredToken, Identity, InvalidToken, KeysUnavailable, TokenError, Verifier

LOCAL = Identity("local", frozenset(SCOPES), math.inf)
"""Everybody, where the gateway runs without auth (on loopback only)."""

SCOPE_TO_READ = "jobs:read"
_PROVIDERS_S = 300.0
_REMEMBERED = 10_000


class MissingToken(TokenError):
    """Raised when a request carries no token at all."""

    def __init__(self) -> None:
        super().__init__("no token; send Authorization: Bearer <token>, made by: epochcast token create")


class Authenticator:
    """Checks the token of every request and socket. Raises NoKeys where there is nothing to check it with."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._verifier = Verifier(settings, clock) if settings.auth == "token" else None
        self._clock = clock
        # Not longer than a provider's keys are remembered: one that is withdrawn must stop working.
        self._longest_s = _PROVIDERS_S if settings.jwks_url else math.inf
        self._known: dict[str, tuple[Identity, float]] = {}
        self._headers: dict[bytes, tuple[Identity, float]] = {}
        # Fetching a provider's keys may take seconds; it must not keep the threads that everything else needs.
        self._threads = anyio.CapacityLimiter(4)

    async def identify(self, connection: HTTPConnection) -> Identity:
        """Whoever opened this request or socket. Raises MissingToken, ExpiredToken, InvalidToken."""
        if self._verifier is None:
            return LOCAL
        token = token_of(connection)
        if token is None:
            raise MissingToken
        known = self._known.get(token)
        if known is not None and known[1] > self._clock():
            self._remember_header(connection, known)
            return known[0]
        # In a thread: the identity provider's keys may have to be fetched.
        identity = await anyio.to_thread.run_sync(self._verifier.verify, token, limiter=self._threads)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        known = self._known[token] = identity, min(identity.expires_at, self._clock() + self._longest_s)
        self._remember_header(connection, known)
        return identity

    def recall(self, authorization: bytes | None) -> Identity | None:
        """Who sent this header before, with a token that still holds; None: `identify` has to say."""
        if self._verifier is None:
            return LOCAL
        known = self._headers.get(authorization or b"")
        return known[0] if known is not None and known[1] > self._clock() else None

    def _remember_header(self, connection: HTTPConnection, known: tuple[Identity, float]) -> None:
        header = connection.headers.get("authorization")
        if header is not None:
            if len(self._headers) >= _REMEMBERED:
                self._headers.clear()
            self._headers[header.encode("latin-1")] = known


def token_of(connection: HTTPConnection) -> str | None:
    """The first token found: header, subprotocols `['Bearer', token]`, `?token=`.

    Raises InvalidToken for a header of another kind.
    """
    header = connection.headers.get("authorization")
    if header is not None:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise InvalidToken("the Authorization header must be: Bearer <token>")
        return token.strip()
    offered = connection.scope.get("subprotocols") or []
    if len(offered) >= 2 and offered[0].lower() == "bearer":
        return str(offered[1])
    return connection.query_params.get("token")


def requires(scope: str) -> Callable[[Request], Awaitable[Identity]]:
    """A dependency that gives the Identity behind a request, or answers 401 or 403."""

    async def identified(request: Request) -> Identity:
        identity = await identify(request)
        if scope not in identity.scopes:
            has = " ".join(sorted(identity.scopes)) or "none"
            raise Problem(403, "missing_scope", f"this needs the scope {scope}; the token's scopes are: {has}")
        return identity

    return identified


async def identify(request: Request) -> Identity:
    authenticator: Authenticator = request.app.state.authenticator
    try:
        return await authenticator.identify(request)
    except KeysUnavailable as error:
        raise Problem(503, "keys_unavailable", str(error), headers={"Retry-After": str(RETRY_AFTER_S)}) from error
    except MissingToken as error:
        raise _unauthenticated("authentication_required", error, 'Bearer realm="epochcast"') from error
    except ExpiredToken as error:
        raise _unauthenticated("token_expired", error, _REFUSED) from error
    except TokenError as error:
        raise _unauthenticated("invalid_token", error, _REFUSED) from error


_REFUSED = 'Bearer realm="epochcast", error="invalid_token"'


def _unauthenticated(code: str, error: TokenError, challenge: str) -> Problem:
    return Problem(401, code, str(error), headers={"WWW-Authenticate": challenge})


def visible_to(identity: Identity) -> str | None:
    """The owner whose jobs alone this identity sees; None: it sees everybody's."""
    return None if identity.sees_all_jobs else identity.owner


Reader = Annotated[Identity, Depends(requires(SCOPE_TO_READ))]
Writer = Annotated[Identity, Depends(requires("jobs:write"))]
Uploader = Annotated[Identity, Depends(requires("code:write"))]
HostAdmin = Annotated[Identity, Depends(requires("hosts:admin"))]
