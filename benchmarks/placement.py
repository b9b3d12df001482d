"""What a fleet costs the record: placing passes over long queues, claims, heartbeats; and how each grows with it.

No machine trains here: hosts, GPUs and jobs are rows. SQLite is written through to the disk, and so is PostgreSQL.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from benchmarks.harness import fleet
from benchmarks.harness.hammering import Hammered, beating, claiming, hammer, renewing
from benchmarks.harness.result import Result, Table, median
from shared import deciding
from shared.database import Database
from shared.fleet import Fleet
from shared.placement import place
from shared.tables import jobs
from shared.transitions import release_resources
from tests.postgres import PostgresServer

KINDS = ("SQLite", "PostgreSQL")
FREED = 100
# At which a fleet of that size calls: a host's agent every 5 s, a job's supervisor every 10 s.
AGENT_S, SUPERVISOR_S = 5.0, 10.0


@dataclass(frozen=True, slots=True)
class Passes:
    """Seconds. `idle`: the fleet is full, nothing has changed; `forecast`: the same with expected starts; `freed`: a
    hundred GPUs are free again; `empty`: everything that fits into an empty fleet is placed."""

    hosts: int
    queued: int
    idle: float
    forecast: float
    freed: float
    empty: float
    placed: int
    hosts_page: float
    """`GET /hosts`' look at the record: one page, a thousand hosts at most."""


class Bench:
    def __init__(self, folder: Path, server: PostgresServer, options: argparse.Namespace) -> None:
        self.folder = folder
        self.server = server
        self.options = options

    def passes(self, kind: str, scale: float) -> Passes:
        hosts, queued = max(1, round(self.options.hosts * scale)), max(1, round(self.options.jobs * scale))
        name = f"passes_{hosts}"
        with fleet.opened(kind, self.folder, self.server, f"{name}_busy") as database:
            filled = fleet.fill(database, hosts, queued, busy=True)
            _settle(database)
            idle = [_seconds(lambda: place(database, forecasts=False)) for _ in range(self.options.rounds)]
            forecast = [_seconds(lambda: place(database)) for _ in range(self.options.rounds)]
            page = [_seconds(lambda: Fleet(database).page(1_000)) for _ in range(self.options.rounds)]
            _free(database, filled.running[:FREED])
            freed = _seconds(lambda: place(database, forecasts=False))
        print(f"{kind}, {hosts:,} hosts, {queued:,} queued: idle {median(idle):.3f} s", flush=True)
        if scale > 1:  # it takes minutes, and a fleet of that size is never empty
            return Passes(hosts, queued, median(idle), median(forecast), freed, 0.0, 0, median(page))
        with fleet.opened(kind, self.folder, self.server, f"{name}_empty") as database:
            fleet.fill(database, hosts, queued, busy=False)
            began = time.monotonic()
            placed = len({one.job_id for one in place(database, forecasts=False)})
            empty = time.monotonic() - began
        return Passes(hosts, queued, median(idle), median(forecast), freed, empty, placed, median(page))

    def claims(self, kind: str) -> Hammered:
        """As many jobs as are asked for, on one host, wanted by every process."""
        with fleet.opened(kind, self.folder, self.server, "claims") as database:
            fleet.fill(database, 1, 0, busy=False)
            with database.write() as connection:
                connection.execute(sa.text("UPDATE hosts SET slots = 100000"))
                now = database.time(connection)
                rows = [fleet.job(now, {}) for _ in range(self.options.claims)]
                fleet.insert(connection, jobs, rows)
            ids = sorted({one.job_id for one in place(database, forecasts=False)})
            return hammer(claiming, _url(database), self.options.processes, ids, 600)

    def heartbeats(self, scale: float) -> tuple[Hammered, Hammered]:
        """On PostgreSQL: renewals of leases, and of hosts; each as many as it can take."""
        hosts = max(1, round(self.options.hosts * scale))
        with fleet.opened("PostgreSQL", self.folder, self.server, "beats") as database:
            filled = fleet.fill(database, hosts, 0, busy=True)
            url, count, seconds = _url(database), self.options.processes, self.options.seconds
            renewed = hammer(renewing, url, count, filled.running, seconds)
            return renewed, hammer(beating, url, count, range(hosts), seconds)


def _url(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


def _seconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _settle(database: Database) -> None:
    """Everybody's reason is written, by one pass that may write all: then a pass finds nothing to do."""
    usual, deciding.EXPLAINED_AT_ONCE = deciding.EXPLAINED_AT_ONCE, 10**9
    try:
        for _ in range(2):
            place(database)
    finally:
        deciding.EXPLAINED_AT_ONCE = usual


def _free(database: Database, job_ids: list[int]) -> None:
    with database.write() as connection:
        for job_id in job_ids:
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(status="succeeded", lease_until=0.0))
            release_resources(connection, job_id)


def measure(options: argparse.Namespace) -> Result:
    server = PostgresServer(durable=True, shared_buffers="256MB")
    try:
        server.start()
        with tempfile.TemporaryDirectory(prefix="epochcast-bench-") as folder:
            bench = Bench(Path(folder), server, options)
            scales = [float(scale) for scale in options.scales.split(",")]
            passes = {kind: [bench.passes(kind, scale) for scale in scales] for kind in KINDS}
            claims = {kind: bench.claims(kind) for kind in KINDS}
            renewed, beaten = bench.heartbeats(1.0)
            return result_of(options, passes, claims, renewed, beaten)
    finally:
        server.stop()


def result_of(
    options: argparse.Namespace,
    passes: dict[str, list[Passes]],
    claims: dict[str, Hammered],
    renewed: Hammered,
    beaten: Hammered,
) -> Result:
    rows = [
        (
            kind,
            f"{one.hosts:,}",
            f"{one.queued:,}",
            f"{one.idle:.3f}",
            f"{one.forecast:.3f}",
            f"{one.freed:.3f}",
            f"{one.placed:,} in {one.empty:.1f}" if one.placed else "not measured",
            f"{one.hosts_page:.3f}",
        )
        for kind, found in passes.items()
        for one in found
    ]
    columns = (
        "database",
        "hosts (8 GPUs each)",
        "queued",
        "a pass, nothing to do",
        "with expected starts",
        f"{FREED} GPUs freed",
        "an empty fleet filled",
        "GET /hosts",
    )
    figures: dict[str, float] = {}
    for kind, found in passes.items():
        for one in found:
            key = f"{kind.lower()}_{one.hosts}"
            figures |= {f"{key}_idle_s": round(one.idle, 4), f"{key}_forecast_s": round(one.forecast, 4)}
            figures[f"{key}_freed_s"] = round(one.freed, 4)
            if one.placed:
                figures[f"{key}_placed_per_s"] = round(one.placed / one.empty, 1)
    for kind, claimed in claims.items():
        figures[f"{kind.lower()}_claims_per_s"] = round(claimed.per_s, 1)
    figures |= {"renewals_per_s": round(renewed.per_s, 1), "host_beats_per_s": round(beaten.per_s, 1)}
    running = options.hosts * (fleet.GPUS + fleet.SLOTS)
    return Result(
        "placement",
        "What a fleet costs the record",
        f"Passes in seconds, medians of {options.rounds}; rates by {options.processes} processes at once.",
        [
            Table(columns, rows),
            Table(
                ("what", "database", "a second", "one takes, median (p99) ms", "needed a second"),
                [
                    *(
                        (
                            f"claims won; {claimed.tried:,} tried for {claimed.done:,} jobs",
                            kind,
                            f"{claimed.per_s:,.0f}",
                            _times(claimed),
                            "",
                        )
                        for kind, claimed in claims.items()
                    ),
                    _rate(f"leases renewed, {running:,} jobs run", renewed, running / SUPERVISOR_S),
                    _rate(f"heartbeats of {options.hosts:,} hosts", beaten, options.hosts / AGENT_S),
                ],
            ),
            _estimate(renewed, beaten, options),
        ],
        figures,
        [
            "The queue is a mix: 70 % want one GPU, the rest four with 60 GiB, eight, twice eight, none; 5 % say how "
            "long they take. 80 % of what runs has a known end. One job has waited long, so that room is kept for it.",
            "SQLite: synchronous=FULL. PostgreSQL: fsync and full_page_writes on, one server with 256 MB of buffers on "
            "the same cores as the processes that ask it; a server of its own has more.",
            "A pass that places writes 200 jobs a transaction, on PostgreSQL 1,000. Reasons are written 500 a pass; "
            "these had none to write.",
            "For the whole fleet one dispatcher makes one pass a second; the others look at one row.",
        ],
    )


def _times(found: Hammered) -> str:
    return f"{found.median_ms:.1f} ({found.p99_ms:.1f})"


def _rate(what: str, found: Hammered, needed: float) -> tuple[str, ...]:
    return what, "PostgreSQL", f"{found.per_s:,.0f}", _times(found), f"{needed:,.0f}"


def _estimate(renewed: Hammered, beaten: Hammered, options: argparse.Namespace) -> Table:
    """On paper, for one GPU a job: what each size asks of PostgreSQL, in parts of what was measured here."""
    rows = []
    for cards in (options.hosts * fleet.GPUS, 10 * options.hosts * fleet.GPUS, 100_000):
        hosts = cards / fleet.GPUS
        leases, beats = cards / SUPERVISOR_S, hosts / AGENT_S
        rows.append(
            (
                f"{cards:,}",
                f"{leases:,.0f} ({leases / renewed.per_s:.0%})",
                f"{beats:,.0f} ({beats / beaten.per_s:.0%})",
                f"{cards / 60:,.0f}",
                f"{hosts / 5:,.0f}",
                f"{2 * cards + hosts:,.0f} to {5 * (cards + hosts):,.0f}",
            )
        )
    columns = (
        "GPUs, a job on each",
        "renewals a second (of what one machine did here)",
        "host heartbeats",
        "epochs recorded, at one a minute",
        "looks for a turn",
        "connections",
    )
    return Table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=1_000)
    parser.add_argument("--jobs", type=int, default=10_000, help="that wait, with that many hosts")
    parser.add_argument("--scales", default="0.1,1,10", help="multiples of both, for passes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--claims", type=int, default=400, help="jobs to claim")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="of heartbeats of each kind")
    measure(parser.parse_args()).show()


if __name__ == "__main__":
    main()
