"""The short way for pollers: a polled job's GET, answered before routing, models and SQL come into it.

It answers only what it knows for certain to be what the whole application would answer, and leaves everything else to
it: any other call, parameter or origin, a token or host that it has not seen pass, a job that is not followed.
"""

from collections.abc import Mapping
from time import perf_counter

from starlette.types import Message, Scope, Send

from api.auth import SCOPE_TO_READ, Authenticator
from api.gate import Gate
from api.polls import PolledJob
from api.snapshots import Answer
from api.telemetry import Telemetry

_ROUTE = "/api/v1/training-jobs/{job_id}"
_NO_BODY: Message = {"type": "http.response.body", "body": b""}
_MOST_HOSTS = 100


class FastLane:
    """Closed until `open` gives it the polled jobs, and again after `close`."""

    def __init__(self, gate: Gate, authenticator: Authenticator, telemetry: Telemetry) -> None:
        self._gate = gate
        self._recall = authenticator.recall
        self._counted = {status: telemetry.counter("GET", _ROUTE, status) for status in (200, 304)}
        self._hosts: set[bytes] = set()
        self._jobs: Mapping[str, PolledJob] = {}

    def open(self, jobs: Mapping[str, PolledJob]) -> None:
        """`jobs`: by the path of their GET."""
        self._jobs = jobs

    def close(self) -> None:
        self._jobs = {}

    async def answers(self, scope: Scope, send: Send) -> bool:
        """Whether the request was answered; else the application has to."""
        polled = self._jobs.get(scope["path"])
        if polled is None or scope["method"] != "GET" or scope["query_string"]:
            return False
        started = perf_counter()
        headers = dict(scope["headers"])
        if (answer := self._answer(polled, headers)) is None or len(headers) != len(scope["headers"]):
            return False
        polled.is_used = True
        if (known := headers.get(b"if-none-match")) is not None and answer.is_known(known):
            await send(answer.unchanged)
            await send(_NO_BODY)
            self._counted[304](perf_counter() - started)
        else:
            await send(answer.start)
            await send(answer.body)
            self._counted[200](perf_counter() - started)
        return True

    def _answer(self, polled: PolledJob, headers: dict[bytes, bytes]) -> Answer | None:
        # The application adds what a page of another origin needs, and refuses announced bodies.
        if b"origin" in headers or b"content-length" in headers or b"transfer-encoding" in headers:
            return None
        identity = self._recall(headers.get(b"authorization"))
        if identity is None or SCOPE_TO_READ not in identity.scopes:
            return None
        if identity.owner != polled.owner and not identity.sees_all_jobs:
            return None
        host = headers.get(b"host", b"")
        if host not in self._hosts and not self._is_served(host):
            return None
        return polled.answer

    def _is_served(self, host: bytes) -> bool:
        if not self._gate.serves(host.decode("latin-1")):
            return False
        if len(self._hosts) >= _MOST_HOSTS:
            self._hosts.clear()
        self._hosts.add(host)
        return True
