"""One HTTP request to the gateway: token, retries, and every failure turned into an error of `epochcast.errors`."""

import asyncio
import io
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from email.utils import parsedate_to_datetime
from time import time
from typing import IO, Any

import httpx2
import orjson
from pydantic import ValidationError

from epochcast.connection import Connection
from epochcast.errors import EpochcastError, IncompatibleServer, Problem, Unreachable, refusal

TRIES = 3
BLOCK_BYTES = 256 * 1024
TRANSIENT = frozenset({502, 503, 504})
_FILE_NAME = re.compile(r'filename="?([A-Za-z0-9][A-Za-z0-9._-]*)"?')
Query = Mapping[str, str | int | float | bool | Sequence[str | int] | None]


class Transport:
    """The pool of connections to one gateway. Proxies of the environment are used, but never for loopback."""

    def __init__(self, connection: Connection, timeout_s: float = 30.0) -> None:
        self.connection = connection
        self._http = httpx2.AsyncClient(
            base_url=connection.api,
            headers=connection.headers,
            timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            trust_env=not connection.is_loopback,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def json(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        is_repeatable: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """The answer's JSON. A GET, and what is repeatable, is tried again when the network or a 503 fails it."""
        response = await self._send_with_retries(
            lambda: self._request(method, path, query, body, headers, timeout_s),
            tries=TRIES if is_repeatable or method == "GET" else 1,
        )
        return read_json(response)

    async def upload(self, path: str, file: IO[bytes], kind: str, timeout_s: float) -> Any:
        """Sends a file, from its beginning, and gives the answer's JSON; tried again like what is repeatable."""
        headers = {"Content-Type": kind, "Content-Length": str(file.seek(0, io.SEEK_END))}
        response = await self._send_with_retries(
            lambda: self._http.build_request("POST", path, content=_blocks(file), headers=headers, timeout=timeout_s),
            tries=TRIES,
        )
        return read_json(response)

    async def file(self, path: str) -> tuple[int, str | None]:
        """The size of the file at `path`, and the server's name for it if that can be a file's name here."""
        response = await self._send_with_retries(
            lambda: self._http.build_request("HEAD", path.lstrip("/"), headers={"Accept-Encoding": "identity"}),
            tries=TRIES,
        )
        size = response.headers.get("Content-Length", "")
        if not size.isdigit():
            raise IncompatibleServer(f"{response.request.url} doesn't say how large it is; upgrade the server")
        name = _FILE_NAME.search(response.headers.get("Content-Disposition", ""))
        return int(size), name[1] if name else None

    @asynccontextmanager
    async def stream(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """A response whose body is read by the caller; raised as in `json` when it is an error."""
        with unreachable(self.connection):
            async with self._http.stream("GET", path.lstrip("/"), headers=dict(headers)) as response:
                if response.is_error and response.status_code != 416:
                    await response.aread()
                    raise error_of(response)
                yield response

    def _request(
        self,
        method: str,
        path: str,
        query: Query | None,
        body: Any,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> httpx2.Request:
        content = {"Content-Type": "application/json"} if body is not None else {}
        return self._http.build_request(
            method,
            path,
            params={name: value for name, value in (query or {}).items() if value is not None},
            content=None if body is None else orjson.dumps(body),
            headers={**content, **(headers or {})},
            timeout=httpx2.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s,
        )

    async def _send_with_retries(self, make: Callable[[], httpx2.Request], tries: int) -> httpx2.Response:
        for attempt in range(1, tries + 1):
            request = make()  # anew: a body that is read from a file is sent once
            try:
                with unreachable(self.connection):
                    response = await self._http.send(request)
            except Unreachable:
                if attempt == tries:
                    raise
                await asyncio.sleep(jittered(attempt))
                continue
            if response.status_code in TRANSIENT and attempt < tries:
                await asyncio.sleep(jittered(attempt, at_least_s=min(retry_after_s(response.headers), 5.0)))
                continue
            if response.is_error:
                raise error_of(response)
            return response
        raise EpochcastError("no try of a request was made")  # tries is never below 1


async def _blocks(file: IO[bytes]) -> AsyncIterator[bytes]:
    file.seek(0)
    while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
        yield block


@contextmanager
def unreachable(connection: Connection) -> Iterator[None]:
    """Turns what the network does to a request into Unreachable, with the address and the way out."""
    url = connection.url
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.InvalidURL) as error:
        raise Unreachable(f"{url} can't be reached ({_reason(error)}); is it running? {WAY_OUT}") from error
    except httpx2.TimeoutException as error:
        raise Unreachable(f"{url} took too long to answer ({_reason(error)}); try again") from error
    except httpx2.RequestError as error:
        raise Unreachable(f"the connection to {url} broke ({_reason(error)}); try again") from error


WAY_OUT = "Start one with `epochcast up`, or name another with --url or EPOCHCAST_URL"


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def read_json(response: httpx2.Response) -> Any:
    """The body. Raises IncompatibleServer when it is none, as behind a proxy that answers with a page of its own."""
    try:
        return orjson.loads(response.content)
    except ValueError:
        kind = response.headers.get("content-type", "no content type")
        raise IncompatibleServer(
            f"{response.request.url} answered {response.status_code} with {kind}, not with JSON; "
            "is this the address of an epochcast gateway?"
        ) from None


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Turns an answer of another shape than the contract's into IncompatibleServer."""
    try:
        yield
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise IncompatibleServer(
            f"the server's {what} can't be read ({_first_line(error)}); upgrade epochcast here or on the server"
        ) from error


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return ": ".join([".".join(str(part) for part in problem["loc"]), problem["msg"]])
    return f"{type(error).__name__}: {error}"


def error_of(response: httpx2.Response) -> EpochcastError:
    """The error for an answer of 400 and more."""
    title = f"{response.status_code} {response.reason_phrase}"
    try:
        content = orjson.loads(response.content)
    except ValueError:
        content = None
    if not isinstance(content, dict) or "title" not in content:
        return refusal(Problem(response.status_code, title, f"{response.request.url} answered {title}"))
    errors = content.get("errors")
    return refusal(
        Problem(
            status=response.status_code,
            title=str(content["title"]),
            detail=str(content.get("detail") or ""),
            code=str(content.get("code") or ""),
            errors=errors if isinstance(errors, list) else [],
        )
    )


def retry_after_s(headers: Mapping[str, str]) -> float:
    """What `Retry-After` asks for, in seconds from now; 0 without one."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except ValueError:
        return 0.0


def jittered(attempt: int, base_s: float = 0.2, cap_s: float = 30.0, at_least_s: float = 0.0) -> float:
    """Seconds to wait after try `attempt` (from 1): exponential, with full jitter, so that a crowd doesn't come back
    as one."""
    return at_least_s + random.uniform(0, min(cap_s, base_s * 2 ** min(attempt, 16)))
