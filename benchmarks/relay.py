"""What one delivered message costs a relay, from Redis to the subscribers' sockets: ours beside others.

A relay is one process with a core of its own. A second process publishes, a third (in C) holds the sockets, checks that
each gets every message in order, and reads the relay's CPU clock. All relays take turns in one run.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.relay_peers import driver, report, stalled
from benchmarks.relay_peers.driver import Run, Shape, Site
from benchmarks.relay_peers.ours import prepare
from benchmarks.relay_peers.peers import (
    FIRST_JOB,
    OURS,
    Missing,
    Peer,
    build,
    check,
    environment,
    install_node_peers,
    peers,
)
from shared.embedded import RedisServer

MAIN = Shape(200, 5)
SHAPES = (MAIN, Shape(1, 10), Shape(2_000, 1))
IDLE = (Shape(200, 5), Shape(800, 5))
"""1,000 sockets, then 4,000 more."""
MOST_JOBS = 2_000
BURST = 16
STEADY = 1_000
RATE_S = 4.0
STALLED, STALLED_RATE = Shape(1, 5), 5_000
"""A thousand messages a second of one job: a socket that isn't read is full within the run."""


@dataclass
class Measured:
    """All that was measured, by peer; `closed` and `burst` hold one Run a round."""

    closed: defaultdict[tuple[str, Shape], list[Run]] = field(default_factory=lambda: defaultdict(list))
    burst: defaultdict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    steady: dict[str, Run] = field(default_factory=dict)
    loaded: dict[str, Run] = field(default_factory=dict)
    idle_kib: dict[tuple[str, int], float] = field(default_factory=dict)
    idle_cpu: dict[str, float] = field(default_factory=dict)
    """Milliseconds of CPU per second with 5,000 idle sockets."""
    beside_stalled: tuple[Run, Run] | None = None
    """Ours, with nobody who stalls and with some."""
    opened_per_second: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def cost(self, peer: str, shape: Shape = MAIN) -> float | None:
        runs = self.closed.get((peer, shape))
        return statistics.median(run.cost_us for run in runs) if runs else None

    def more_kib(self, peer: str) -> float | None:
        """Of each socket beyond the first thousand, with which a relay also gets its threads, caches and pools."""
        first, all_kib = self.idle_kib.get((peer, 1_000)), self.idle_kib.get((peer, 5_000))
        return None if first is None or all_kib is None else (all_kib * 5_000 - first * 1_000) / 4_000

    def burst_cost(self, peer: str) -> float | None:
        runs = self.burst.get(peer)
        return statistics.median(run.cost_us for run in runs) if runs else None


def main() -> None:
    options = _options()
    os.sched_setaffinity(0, driver.load_cores())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        build(folder)
        redis_server = stack.enter_context(RedisServer(folder / "redis"))
        settings, token = prepare(folder, redis_server, MAIN.jobs if options.quick else MOST_JOBS)
        url = urlsplit(redis_server.url)
        site = Site(folder, redis_server.port, environment(url.password or "", settings, token))
        measured = Measured()
        present = list(_present(peers(folder), options.peers, measured))
        for number in range(options.rounds):
            for peer in present:
                _cost(peer, site, measured, options.deliveries, is_first=number == 0)
        if not options.quick:
            _more(present, site, measured, options.deliveries)
    report.result(measured, present, options.rounds).show()


def _more(present: Sequence[Peer], site: Site, measured: Measured, deliveries: int) -> None:
    for shape in [shape for shape in SHAPES if shape != MAIN]:
        for peer in present:
            _cost_of_shape(peer, site, shape, measured, deliveries // 2)
    for peer in [peer for peer in present if peer.is_clocked]:
        _idle(peer, site, measured)
    for peer in [peer for peer in present if peer.name == OURS]:
        _beside_stalled(peer, site, measured)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", help="only these")
    parser.add_argument("--deliveries", type=int, default=200_000, help="in each measurement; slow relays get fewer")
    parser.add_argument("--quick", action="store_true", help="only the first shape, and no idle sockets")
    return parser.parse_args()


def _present(all_peers: Sequence[Peer], wanted: Sequence[str] | None, measured: Measured) -> Sequence[Peer]:
    node_problem = install_node_peers()
    present = []
    for peer in all_peers:
        try:
            check(peer, node_problem)
        except Missing as missing:
            measured.missing[peer.name] = str(missing)
        else:
            present.append(peer)
    return [peer for peer in present if not wanted or peer.name in wanted]


def _cost(peer: Peer, site: Site, measured: Measured, deliveries: int, *, is_first: bool) -> None:
    """The main shape: one outstanding, bursts, and in the first round the delays."""
    deliveries = round(deliveries * peer.share)
    with driver.serve(peer, site, MAIN.jobs) as server, driver.load(peer, site, server, MAIN) as load:
        server.settle()
        load.closed(1, deliveries // 10)
        run = load.closed(1, deliveries)
        measured.closed[peer.name, MAIN].append(run)
        _say(peer, "one outstanding", run)
        if is_first and peer.is_clocked:
            measured.steady[peer.name] = load.rate(STEADY, RATE_S)
            measured.loaded[peer.name] = load.rate(0.8 * run.per_second, RATE_S)
            _say(peer, "steady", measured.steady[peer.name])
            _say(peer, "at 80 %", measured.loaded[peer.name])
        if not peer.joins and peer.is_clocked:
            measured.burst[peer.name].append(load.closed(BURST, deliveries))
            _say(peer, "burst", measured.burst[peer.name][-1])
    if peer.joins:
        with driver.serve(peer, site, MAIN.jobs, join=True) as server, driver.load(peer, site, server, MAIN) as load:
            server.settle()
            load.closed(BURST, deliveries // 10)
            measured.burst[peer.name].append(load.closed(BURST, deliveries))
            _say(peer, "burst, joined", measured.burst[peer.name][-1])


def _cost_of_shape(peer: Peer, site: Site, shape: Shape, measured: Measured, deliveries: int) -> None:
    deliveries = round(deliveries * peer.share)
    with driver.serve(peer, site, shape.jobs) as server, driver.load(peer, site, server, shape) as load:
        server.settle()
        load.closed(1, deliveries // 10)
        measured.closed[peer.name, shape].append(load.closed(1, deliveries))
        _say(peer, str(shape), measured.closed[peer.name, shape][-1])


def _idle(peer: Peer, site: Site, measured: Measured) -> None:
    """Memory and CPU of sockets on which nothing happens."""
    jobs = sum(shape.jobs for shape in IDLE)
    with driver.serve(peer, site, jobs) as server, ExitStack() as stack:
        server.settle()
        before, first_job, sockets = server.memory_kib, 1, 0
        for shape in IDLE:
            load = stack.enter_context(driver.load(peer, site, server, shape, first_job))
            server.settle(whole_s=2.0)
            first_job, sockets = first_job + shape.jobs, sockets + shape.sockets
            measured.idle_kib[peer.name, sockets] = (server.memory_kib - before) / sockets
            measured.opened_per_second[peer.name] = shape.sockets / load.opened["wall_s"]
        measured.idle_cpu[peer.name] = server.cost_of_waiting(10.0)
    _say(peer, "idle", {sockets: measured.idle_kib[peer.name, sockets] for sockets in (1_000, 5_000)})


def _beside_stalled(peer: Peer, site: Site, measured: Measured) -> None:
    """The delays of those who read, without and with others of the same job who don't."""
    runs = []
    for count in (0, STALLED.subscribers):
        with (
            driver.serve(peer, site, STALLED.jobs) as server,
            driver.load(peer, site, server, STALLED) as load,
            stalled.sockets(server.port, site.environment["TOKEN"], FIRST_JOB, count),
        ):
            server.settle()
            runs.append(load.rate(STALLED_RATE, RATE_S))
    measured.beside_stalled = runs[0], runs[1]
    _say(peer, "beside stalled", measured.beside_stalled)


def _say(peer: Peer, what: str, result: object) -> None:
    print(f"{peer.name:>10}  {what:<16} {result}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
