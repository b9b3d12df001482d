"""What one delivered message costs a relay, from Redis to the subscribers' sockets: ours beside others.

A relay is one process on a core that only relays have; each has a Redis of its own on the other one. A second process
publishes, a third (in C) holds the sockets, checks that each gets every message in order, and reads the relay's CPU
clock. For costs all relays are up at once and take turns of a tenth of a second or two, because what a machine does
beside them changes within seconds: a ratio is the median of those of all turns, each of two neighbours in time.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.relay_peers import driver, report, stalled
from benchmarks.relay_peers.driver import Load, Run, Shape, Site
from benchmarks.relay_peers.ours import prepare
from benchmarks.relay_peers.peers import (
    FIRST_JOB,
    FLOOR,
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
STEADY, STEADY_S, DELAY_TURNS = 1_000, 1.0, 11
LOADED_DELIVERIES, LOADED_S, LOADED_SHARES, KEEPS_UP = 100_000, 2.0, (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2), 0.98
IDLE_ROUNDS = 3
STALLED, STALLED_RATE, STALLED_S = Shape(1, 5), 5_000, 3.0
"""A thousand messages a second of one job: a socket that isn't read is full within the run."""

Sites = Mapping[str, Site]
"""By peer."""
Up = Sequence[tuple[Peer, Load]]
"""Relays that are served, and their sockets."""


@dataclass(frozen=True, slots=True)
class Idle:
    """KiB of each socket on which nothing happens: of the first thousand, of all five, and of each of the last four.

    With its first thousand a relay also gets its threads, caches and pools.
    """

    first_kib: float
    all_kib: float
    more_kib: float
    opened_per_second: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """`share`: of the relay's speed with one message outstanding per job."""

    share: float
    run: Run


@dataclass
class Measured:
    """All that was measured, by peer; a list holds one result a turn or round."""

    closed: defaultdict[tuple[str, Shape], list[Run]] = field(default_factory=lambda: defaultdict(list))
    burst: defaultdict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    steady: defaultdict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    loaded: dict[str, Loaded] = field(default_factory=dict)
    p50_over_floor: dict[str, float] = field(default_factory=dict)
    """The median of the ratios of all turns."""
    idle: defaultdict[str, list[Idle]] = field(default_factory=lambda: defaultdict(list))
    idle_cpu: dict[str, float] = field(default_factory=dict)
    """Milliseconds of CPU per second with 5,000 idle sockets."""
    beside_stalled: tuple[Run, Run] | None = None
    """Ours, with nobody who stalls and with some."""
    missing: dict[str, str] = field(default_factory=dict)

    def closed_runs(self, shape: Shape, peer: str) -> list[Run]:
        return self.closed[peer, shape]


def main() -> None:
    options = _options()
    os.sched_setaffinity(0, driver.load_cores())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        build(folder)
        measured = Measured()
        present = list(_present(peers(folder), options.peers, measured))
        jobs = MAIN.jobs if options.quick else MOST_JOBS
        sites = {peer.name: _site(peer, folder, jobs, stack) for peer in present}
        _main_shape(present, sites, measured, options)
        if not options.quick:
            _more(present, sites, measured, options)
    report.result(measured, present, options.turns).show()


def _site(peer: Peer, programs: Path, jobs: int, stack: ExitStack) -> Site:
    """With a Redis of its own, for all listen to the same channels."""
    redis_server = stack.enter_context(RedisServer(programs / f"{peer.name}.redis"))
    settings, token = prepare(programs, redis_server, jobs) if peer.name == OURS else ({}, "none")
    return Site(programs, redis_server.port, environment(urlsplit(redis_server.url).password or "", settings, token))


def _main_shape(present: Sequence[Peer], sites: Sites, measured: Measured, options: argparse.Namespace) -> None:
    """One outstanding; bursts; delays."""
    clocked = [peer for peer in present if peer.is_clocked]
    with _up(present, sites, MAIN) as up:
        _take_turns(up, 1, options.turns, options.deliveries, partial(measured.closed_runs, MAIN))
    with _up(clocked, sites, MAIN, join=True) as up:
        _take_turns(up, BURST, options.turns, 2 * options.deliveries, measured.burst.__getitem__)
    floor = next((peer for peer in clocked if peer.name == FLOOR), None)
    for peer in [peer for peer in clocked if peer is not floor]:
        _delays(peer, floor, sites, measured, 1 if options.quick else DELAY_TURNS)


def _more(present: Sequence[Peer], sites: Sites, measured: Measured, options: argparse.Namespace) -> None:
    for shape in [shape for shape in SHAPES if shape != MAIN]:
        with _up(present, sites, shape) as up:
            _take_turns(up, 1, options.turns // 2, options.deliveries, partial(measured.closed_runs, shape))
    for number in range(IDLE_ROUNDS):
        for peer in [peer for peer in present if peer.is_clocked]:
            _idle(peer, sites[peer.name], measured, is_last=number == IDLE_ROUNDS - 1)
    for peer in [peer for peer in present if peer.name == OURS]:
        _beside_stalled(peer, sites[peer.name], measured)


@contextmanager
def _up(present: Sequence[Peer], sites: Sites, shape: Shape, *, join: bool = False) -> Iterator[Up]:
    """All of them, with their sockets open and something sent over each."""
    with ExitStack() as stack:
        up = []
        for peer in present:
            site = sites[peer.name]
            server = stack.enter_context(driver.serve(peer, site, shape.jobs, join=join and peer.joins))
            up.append((peer, stack.enter_context(driver.load(peer, site, server, shape))))
            server.settle()
        yield up


def _take_turns(up: Up, outstanding: int, turns: int, deliveries: int, runs: Callable[[str], list[Run]]) -> None:
    for number in range(turns + 1):
        for peer, load in up:
            run = load.closed(outstanding, round(deliveries * peer.share))
            if number > 0:  # the first one was to get warm
                runs(peer.name).append(run)
    for peer, load in up:
        cost = statistics.median(run.cost_us for run in runs(peer.name))
        _say(peer, f"{load.shape}, {outstanding} outstanding", f"{cost:.2f} µs")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=12, help="of each relay")
    parser.add_argument("--peers", nargs="+", help="only these")
    parser.add_argument("--deliveries", type=int, default=40_000, help="in each turn; slow relays get fewer")
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


def _delays(peer: Peer, floor: Peer | None, sites: Sites, measured: Measured, turns: int) -> None:
    """Of a relay and of the floor by turns, with nobody else on their core, for between two messages everybody's code
    leaves the caches. Then of each under load."""
    with _up([peer] if floor is None else [peer, floor], sites, MAIN) as up:
        steady: dict[str, list[Run]] = {served.name: [] for served, _ in up}
        for number in range(turns + 1):
            for served, load in up if number % 2 else reversed(up):
                run = load.rate(STEADY, STEADY_S)
                if number > 0:  # the first one was to get warm
                    steady[served.name].append(run)
        for served, load in up:
            if not measured.steady[served.name]:
                measured.steady[served.name] = steady[served.name]
                measured.loaded[served.name] = _loaded(served, load)
    if floor is not None:
        pairs = zip(steady[peer.name], steady[floor.name], strict=True)
        measured.p50_over_floor[peer.name] = statistics.median(one.p50_ms / other.p50_ms for one, other in pairs)
    _say(peer, "p50 over floor", measured.p50_over_floor.get(peer.name))
    _say(peer, "under load", measured.loaded[peer.name])


def _loaded(peer: Peer, load: Load) -> Loaded:
    """At four fifths of the speed that the relay has just shown; less where it, the publisher or Redis falls behind,
    for the delays would be those of a queue that grows."""
    speed = load.closed(1, round(LOADED_DELIVERIES * peer.share)).per_second
    for share in LOADED_SHARES:
        run = load.rate(share * speed, LOADED_S)
        if run.per_second > KEEPS_UP * share * speed:
            break
    return Loaded(share, run)


def _idle(peer: Peer, site: Site, measured: Measured, *, is_last: bool) -> None:
    """Memory of sockets on which nothing happens; in the last round also their CPU."""
    jobs = sum(shape.jobs for shape in IDLE)
    with driver.serve(peer, site, jobs) as server, ExitStack() as stack:
        server.settle()
        before, first_job = server.memory_kib, 1
        kib, opened = [], []
        for shape in IDLE:
            load = stack.enter_context(driver.load(peer, site, server, shape, first_job))
            server.settle(whole_s=2.0)
            first_job += shape.jobs
            kib.append(server.memory_kib - before)
            opened.append(shape.sockets / load.opened["wall_s"])
        if is_last:
            measured.idle_cpu[peer.name] = server.cost_of_waiting(10.0)
    first, more = (shape.sockets for shape in IDLE)
    idle = Idle(kib[0] / first, kib[1] / (first + more), (kib[1] - kib[0]) / more, opened[-1])
    measured.idle[peer.name].append(idle)
    _say(peer, "idle", idle)


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
            runs.append(load.rate(STALLED_RATE, STALLED_S))
    measured.beside_stalled = runs[0], runs[1]
    _say(peer, "beside stalled", measured.beside_stalled)


def _say(peer: Peer, what: str, result: object) -> None:
    print(f"{peer.name:>10}  {what:<28} {result}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
