"""Tokens: who a bearer is and what they may do. `python -m shared.tokens create --sub alice` makes one."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from jwt.exceptions import PyJWKClientConnectionError, PyJWKClientError, PyJWTError
from jwt.types import Options

from shared import settings as settings_module
from shared.data_folder import read_secret
from shared.settings import Settings, SettingsError

SCOPES = ("jobs:read", "jobs:write", "code:write", "hosts:admin", "jobs:all")
DEFAULT_SCOPES = ("jobs:read", "jobs:write")
MAX_DAYS = 30
MAX_TOKEN_BYTES = 8 * 1024
# Two hosts' clocks may differ by that much before a fresh token is called "from the future".
SKEW_S = 5.0
_DAY_S = 86_400


class TokenError(Exception):
    """The root of everything that is wrong with a token; the message is fit for its bearer."""


class InvalidToken(TokenError):
    """Raised when a token is malformed, badly signed, not valid yet, too long-lived, or asked for with wrong values."""


class ExpiredToken(TokenError):
    """Raised when a token was right but its time is over."""


class KeysUnavailable(InvalidToken):
    """Raised when the identity provider's keys can't be fetched, so that nobody can tell whether the token is right."""


class NoKeys(TokenError):
    """Raised when the settings hold no key to check tokens with."""


@dataclass(frozen=True)
class Identity:
    """Who asks. `expires_at`: Unix seconds."""

    owner: str
    scopes: frozenset[str]
    expires_at: float

    @property
    def sees_all_jobs(self) -> bool:
        return "jobs:all" in self.scopes


class Verifier:
    """Checks tokens against EPOCHCAST_SECRET (HS256) and EPOCHCAST_JWKS_URL (RS256, ES256); both may be in use.

    Keep one per process: it remembers the identity provider's keys. `verify` blocks when it has to fetch them.
    Raises NoKeys when the settings have neither, or a JWKS URL without issuer and audience.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._keys: jwt.PyJWKClient | None = None
        if settings.jwks_url:
            if not (settings.issuer and settings.audience):
                raise NoKeys(
                    "EPOCHCAST_JWKS_URL is set without EPOCHCAST_ISSUER and EPOCHCAST_AUDIENCE; set both, "
                    "or tokens meant for other services would be accepted"
                )
            self._keys = jwt.PyJWKClient(settings.jwks_url, timeout=3, lifespan=300)
        elif settings.secret is None:
            raise NoKeys("EPOCHCAST_SECRET is not set; make one with: openssl rand -hex 32")

    def verify(self, token: str) -> Identity:
        """Raises ExpiredToken, or InvalidToken for everything else that is wrong with `token`."""
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken(f"the token has {len(token)} characters; at most {MAX_TOKEN_BYTES} are read")
        try:
            claims = self._signed_claims(token)
        except PyJWKClientConnectionError as error:
            raise KeysUnavailable(f"the keys at {self._settings.jwks_url} can't be fetched; try again later") from error
        except (PyJWTError, PyJWKClientError, UnicodeError, ValueError, TypeError, RecursionError) as error:
            raise InvalidToken(f"the token can't be used: {error}") from error
        return _identity(claims, self._clock())

    def _signed_claims(self, token: str) -> dict[str, Any]:
        # The header only chooses between key *sources*; each has its own fixed algorithms, so a public key can
        # never be mistaken for an HMAC secret.
        algorithm = jwt.get_unverified_header(token).get("alg")
        # Times are checked below, against a clock that is passed in.
        checks: Options = {
            "verify_exp": False,
            "verify_iat": False,
            "verify_nbf": False,
            "require": ["sub", "exp", "iat"],
        }
        if self._keys is not None and algorithm in ("RS256", "ES256"):
            return jwt.decode(
                token,
                self._keys.get_signing_key_from_jwt(token).key,
                algorithms=["RS256", "ES256"],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                options=checks,
            )
        if self._settings.secret is not None and algorithm == "HS256":
            secret = self._settings.secret.get_secret_value()
            checks["verify_aud"] = False  # our own tokens name no audience
            return jwt.decode(token, secret, algorithms=["HS256"], options=checks)
        raise InvalidToken(f"algorithm {str(algorithm)[:20]!r} is not accepted here")


def verify(token: str, settings: Settings) -> Identity:
    """One check with a Verifier of its own; a server keeps its Verifier instead."""
    return Verifier(settings).verify(token)


def create(sub: str, scopes: Sequence[str], *, days: float, secret: str, clock: Callable[[], float] = time.time) -> str:
    """A signed HS256 token. Raises InvalidToken for values that `verify` would refuse later."""
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown:
        raise InvalidToken(f"unknown scope {unknown[0]!r}; scopes are {' '.join(SCOPES)}")
    if not (0 < days <= MAX_DAYS):
        raise InvalidToken(f"{days:g} days is out of range; a token lives more than 0 and at most {MAX_DAYS} days")
    now = int(clock())
    claims = {"sub": sub, "iat": now, "exp": now + max(1, int(days * _DAY_S)), "scope": " ".join(scopes)}
    _identity(claims, float(now))
    return jwt.encode(claims, secret, algorithm="HS256")


def _identity(claims: dict[str, Any], now: float) -> Identity:
    expires, issued = _seconds(claims, "exp"), _seconds(claims, "iat")
    if expires <= now:
        raise ExpiredToken("the token has expired; make a new one: epochcast token create")
    if expires - issued > MAX_DAYS * _DAY_S:
        raise InvalidToken(f"the token lives {(expires - issued) / _DAY_S:.4g} days; at most {MAX_DAYS} are accepted")
    if issued > now + SKEW_S or ("nbf" in claims and _seconds(claims, "nbf") > now + SKEW_S):
        raise InvalidToken("the token is not valid yet; compare this machine's clock with the one that made it")
    return Identity(_owner(claims["sub"]), _scopes(claims.get("scope", "")), expires)


def _seconds(claims: dict[str, Any], name: str) -> float:
    value = claims[name]
    # bool is an int, 1e999 is inf, and 10**400 does not fit a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise InvalidToken(f"the token's {name} is not a time in Unix seconds")
    if not math.isfinite(value):
        raise InvalidToken(f"the token's {name} is not finite")
    return float(value)


def _owner(sub: object) -> str:
    # The record's owner column has 200 characters; a lone surrogate or NUL would fail only there.
    if not isinstance(sub, str) or not 1 <= len(sub) <= 200 or not sub.isprintable():
        raise InvalidToken("the token's sub must be 1 to 200 printable characters")
    return sub


def _scopes(scope: object) -> frozenset[str]:
    words = scope.split() if isinstance(scope, str) else scope
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InvalidToken("the token's scope must be words separated by blanks")
    return frozenset(words) & frozenset(SCOPES)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        secret = _secret(options.data_dir)
        scopes = options.scope or DEFAULT_SCOPES
        token = create(options.sub, scopes, days=options.days, secret=secret)
    except (TokenError, SettingsError, OSError) as error:
        print(f"epochcast token: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"token": token, "sub": options.sub, "scopes": list(scopes)}) if options.json else token)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="epochcast token", description="Makes tokens where the secret is.")
    command = parser.add_subparsers(required=True, metavar="create").add_parser("create", help="print a new token")
    command.add_argument("--sub", required=True, help="the owner, such as alice")
    command.add_argument(
        "--scope", action="append", help=f"one of {' '.join(SCOPES)}; repeat it (default: {' '.join(DEFAULT_SCOPES)})"
    )
    command.add_argument("--days", type=float, default=7, help=f"lifetime, at most {MAX_DAYS} (default: 7)")
    command.add_argument("--data-dir", type=Path, default=Path(".epochcast"), help="of `epochcast up`")
    command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _secret(data_dir: Path) -> str:
    """EPOCHCAST_SECRET, else the one that `up` keeps in its data folder."""
    configured = settings_module.from_environment().secret
    if configured is not None:
        return configured.get_secret_value()
    kept = read_secret(data_dir)
    if kept is None:
        raise NoKeys(
            f"EPOCHCAST_SECRET is not set and {data_dir}/secret does not exist; run this where the gateway runs"
        )
    return kept


if __name__ == "__main__":
    sys.exit(main())
