"""Which server to talk to, and with which token: given, from the environment, or from the file that `up` wrote."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from epochcast.errors import Unreachable, UsageError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Connection:
    """A gateway's address (no trailing slash) and the token for it."""

    url: str
    token: str | None = field(default=None, repr=False)

    @property
    def is_loopback(self) -> bool:
        return urlsplit(self.url).hostname in LOOPBACK

    @property
    def api(self) -> str:
        return f"{self.url}/api/v1"

    @property
    def websocket_api(self) -> str:
        """The same place for WebSockets: `ws://…` or `wss://…`."""
        return "ws" + self.api.removeprefix("http")

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def find(url: str | None = None, token: str | None = None, environment: Mapping[str, str] | None = None) -> Connection:
    """Arguments, else `EPOCHCAST_URL` and `EPOCHCAST_TOKEN`, else `local.json` of a platform that runs here.

    The token of `local.json` goes to its own url only. Raises Unreachable when no server is known or the known one
    has ended, UsageError when a url or token can't be one.
    """
    values = os.environ if environment is None else environment
    url = url or values.get("EPOCHCAST_URL") or None
    token = token or values.get("EPOCHCAST_TOKEN") or None
    if token is not None:
        _check_token(token)
    if url is None:
        local = _running_local(values)
        return Connection(local.url, token or local.token)
    url = checked_url(url)
    if token is None:
        token = _token_for(url, values)
    return Connection(url, token)


def checked_url(url: str) -> str:
    """`url` without a trailing slash. Raises UsageError when it isn't `http(s)://host…`."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username is not None:
        raise UsageError(f"{url!r} is not a server's address; give one such as http://localhost:8000")
    return f"{parts.scheme}{url[len(parts.scheme) :]}".rstrip("/")


def _check_token(token: str) -> None:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("the token holds characters that no token has; copy it again, without spaces or line breaks")


@dataclass(frozen=True)
class _LocalFile:
    path: Path
    url: str
    token: str | None
    pid: int

    @property
    def is_alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def _running_local(environment: Mapping[str, str]) -> _LocalFile:
    files = _local_files(environment)
    for file in files:
        if file.is_alive:
            return file
    if files:
        raise Unreachable(
            f"the platform that wrote {files[0].path} (process {files[0].pid}) no longer runs; "
            "start it again with `epochcast up`, or name another with --url or EPOCHCAST_URL"
        )
    raise Unreachable("no server is known; start one with `epochcast up`, or name one with --url or EPOCHCAST_URL")


def _token_for(url: str, environment: Mapping[str, str]) -> str | None:
    try:
        files = _local_files(environment)
    except Unreachable:  # a file that can't be read has no token to give
        return None
    return next((file.token for file in files if _place(file.url) == _place(url) and file.is_alive), None)


def _place(url: str) -> tuple[str, str | None, int | None, str]:
    """What makes two addresses one server: the loopback names are the same."""
    parts = urlsplit(url)
    host = "localhost" if parts.hostname in LOOPBACK else parts.hostname
    return parts.scheme, host, parts.port or {"http": 80, "https": 443}[parts.scheme], parts.path


def _local_files(environment: Mapping[str, str]) -> list[_LocalFile]:
    """What `up` left: in its default data folder below the current one, then in the user's state folder."""
    state = environment.get("XDG_STATE_HOME", "")
    home = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"  # relative: unset, says its rule
    paths = (Path(".epochcast/local.json"), home / "epochcast" / "local.json")
    return [file for path in paths if (file := _read(path)) is not None]


def _read(path: Path) -> _LocalFile | None:
    """None when the file is missing or another user's, who could otherwise collect what is submitted here."""
    try:
        with path.open("rb") as file:
            if hasattr(os, "geteuid") and os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            content = json.load(file)
        return _LocalFile(path, checked_url(content["url"]), content.get("token"), int(content["pid"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise Unreachable(f"{path} can't be read ({error}); remove it, or name the server with --url") from error
