"""What `/metrics` shows: requests by route, and, asked at each scrape, jobs, hosts and subscribers."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

import epochcast
from api.census import hosts_by_status, jobs_by_status
from shared.counters import Counted, totals
from shared.database import DatabaseUnavailable

if TYPE_CHECKING:
    from prometheus_client import Gauge
    from prometheus_client.core import Metric

    from api.gateway import Gateway

_STAYS_OPEN = "epochcast.stays_open"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0)


class Telemetry:
    """One registry per application, so that two of them in one process don't meet. Counts this process only."""

    def __init__(self) -> None:
        # Not above: importing it copies the environment, and importing us must not.
        import prometheus_client

        self._prometheus = prometheus_client
        self._registry = prometheus_client.CollectorRegistry()
        self._gauge("build_info", "What runs here; always 1.", "version").labels(epochcast.__version__).set(1)
        self._requests = prometheus_client.Counter(
            "epochcast_http_requests_total",
            "Answered requests by route and status.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = prometheus_client.Histogram(
            "epochcast_http_request_seconds",
            "Time to the end of the answer, by route.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._jobs = self._gauge("jobs", "Training jobs by status.", "status")
        self._hosts = self._gauge("hosts", "Hosts by status: ready, draining, unreachable.", "status")
        self._subscribers = self._gauge("ws_subscribers", "Connected subscribers of this process.")
        self._passes = self._gauge(
            "dispatcher_passes", "Passes of this process' dispatcher; it stands still when stuck."
        )
        self._sql = self._gauge("sql_up", "Whether SQL answered this scrape.")
        self._rare = _RareEvents()
        self._registry.register(self._rare)

    def _gauge(self, name: str, what: str, *labels: str) -> "Gauge":
        return self._prometheus.Gauge(f"epochcast_{name}", what, labels, registry=self._registry)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Counts every request that `app` answers."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return await app(scope, receive, send)
            started, status = time.perf_counter(), 500

            async def watched(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, watched)
            finally:
                self._count(scope, status, time.perf_counter() - started)

        return counted

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's pattern, never the path: ids would make a series each. Foreign methods likewise.
        route = getattr(scope.get("route"), "path", "none")
        if scope["path"].startswith("/api/") and route != "none":
            route = f"/api/v1{route}"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        if _STAYS_OPEN not in scope:
            self._seconds.labels(method, route).observe(seconds)

    def counter(self, method: str, route: str, status: int) -> Callable[[float], None]:
        """Counts one answer and its seconds, without looking up its series each time."""
        count = self._requests.labels(method, route, str(status)).inc
        observe = self._seconds.labels(method, route).observe

        def counted(seconds: float) -> None:
            count()
            observe(seconds)

        return counted

    async def scrape(self, gateway: "Gateway") -> tuple[bytes, str]:
        """The text and its content type. SQL away: everything else, and `epochcast_sql_up 0`."""
        try:
            counted = await gateway.record(jobs_by_status, gateway.database)
            hosts = await gateway.record(hosts_by_status, gateway.database)
            self._rare.totals = await gateway.record(totals, gateway.database)
        except DatabaseUnavailable:
            self._sql.set(0)
            self._jobs.clear()
            self._hosts.clear()
            self._rare.totals = {}
        else:
            self._sql.set(1)
            for status, count in counted.items():
                self._jobs.labels(status).set(count)
            for name in ("ready", "draining", "unreachable"):
                self._hosts.labels(name).set(hosts.get(name, 0))
        self._subscribers.set(gateway.relay.subscribers)
        self._passes.set(gateway.dispatcher.passes)
        return self._prometheus.generate_latest(self._registry), self._prometheus.CONTENT_TYPE_LATEST


class _RareEvents:
    """The record's counters, which count for the whole fleet, as Prometheus'. Without SQL they have no value."""

    def __init__(self) -> None:
        self.totals: dict[Counted, int] = {}

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily

        for what in Counted:
            yield CounterMetricFamily(f"epochcast_{what}", _RARE[what], value=self.totals.get(what))


_RARE = {
    Counted.REAPED: "Running jobs taken back from a host that was lost, in the whole fleet.",
    Counted.FENCED_WRITES: "Attempts that found their job to be somebody else's and wrote nothing, in the whole fleet.",
    Counted.DOUBLED_MESSAGES: "Hints that found nothing to claim, in the whole fleet.",
    Counted.SELF_KILLS: "Attempts that were ended for want of a licence or a lease, in the whole fleet.",
}


def stays_open(scope: Scope) -> None:
    """Says that this answer takes long by design, and that its time tells nothing of the gateway."""
    scope[_STAYS_OPEN] = True


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
