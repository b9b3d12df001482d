"""What the figures say: one table of costs, one of delays and memory, and each goal met or missed."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from api.fan_out import compiled
from benchmarks.harness.result import Result, Table, goal
from benchmarks.relay_peers.driver import Run, Shape
from benchmarks.relay_peers.peers import OURS, Peer, versions

if TYPE_CHECKING:
    from benchmarks.relay import Idle, Measured

MAIN, BUSY, MANY = Shape(200, 5), Shape(1, 10), Shape(2_000, 1)
# performance.md's, as ours over theirs.
GOALS = {"floor": 1.25, "picows": 1.1, "ws": 0.85, "queues": 0.45, "usual": 0.125}
BURST_GOALS = {"picows": 1.1, "ws": 0.6}
P50_GOAL = 1.5
IDLE_GOAL_KIB, MORE_GOAL_KIB = 35.0, 3.0


def result(measured: "Measured", peers: Sequence[Peer], turns: int) -> Result:
    return Result(
        benchmark="relay",
        title="Relay: CPU per delivered message, delay, memory per socket",
        about=(
            "Publisher, Redis, relay, subscribers; messages of 205 bytes, each checked for order and completeness. "
            "One outstanding: a job's next message is published when all its subscribers have the last, so nobody can "
            "join frames; its µs are the relay's CPU per delivery, the median of its turns. A ratio is the median of "
            "those of all turns, for what the machine does beside them changes within seconds."
        ),
        tables=[_costs(measured, peers), _delays(measured, peers), _goals(measured)],
        figures=_figures(measured, peers),
        notes=[
            *_method(measured, turns),
            "In a burst 16 messages per job are outstanding, and ours, the floor, picows and ws join the frames of one "
            "read; the others can't.",
            "Ours sends by " + ("api/fan_out.c." if compiled() else "its transports: there was no C compiler."),
            "The publisher sends PUBLISH alone to all; our gateway gets its header line with it, socket.io its packet.",
            *(f"{peer.name}: {peer.text}." for peer in peers),
            *(f"{name} is missing: {why}." for name, why in measured.missing.items()),
            "; ".join(f"{name} {version}" for name, version in versions().items()),
        ],
    )


def _method(measured: "Measured", turns: int) -> Iterator[str]:
    yield (
        f"For costs all relays are up at once, each with a Redis of its own: {turns} turns of each for {MAIN}, half as "
        "many for the other shapes."
    )
    yield (
        f"Delays: {len(measured.steady[OURS])} turns of a second, each relay by turns with the floor and nobody else "
        "on the core. Under load: one run at 80 % of the speed that the relay has just shown, or at less where it, the "
        "publisher or Redis fell behind (those share the other core with the subscribers)."
    )
    if rounds := len(measured.idle[OURS]):
        yield f"Memory: the median of {rounds} rounds, each relay alone; CPU of idle sockets: ten seconds of the last."


def _costs(measured: "Measured", peers: Sequence[Peer]) -> Table:
    columns = (
        "relay",
        f"µs, {MAIN}",
        "ours / it",
        f"µs, {BUSY}",
        f"µs, {MANY}",
        "ours / it",
        "µs in a burst",
        "ours / it",
        "a second",
    )
    rows = []
    for peer in peers:
        runs = measured.closed[peer.name, MAIN]
        rows.append(
            (
                peer.name,
                _number(_cost(runs)),
                _number(_over(measured.closed[OURS, MAIN], runs), 2),
                _number(_cost(measured.closed[peer.name, BUSY])),
                _number(_cost(measured.closed[peer.name, MANY])),
                _number(_over(measured.closed[OURS, MANY], measured.closed[peer.name, MANY]), 2),
                _number(_cost(measured.burst[peer.name]), 2),
                _number(_over(measured.burst[OURS], measured.burst[peer.name]), 2),
                f"{max(run.per_second for run in runs):,.0f}",
            )
        )
    return Table(columns, rows)


def _delays(measured: "Measured", peers: Sequence[Peer]) -> Table:
    columns = (
        "relay",
        "p50 / p99 ms at 1,000 a second",
        "its p50 / the floor's",
        "p50 / p99 ms under load",
        "load, of its speed",
        "KiB per socket, 1,000",
        "5,000",
        "each of the last 4,000",
        "CPU of 5,000 idle, ms/s",
        "opened a second",
    )
    rows = []
    for peer in [peer for peer in peers if peer.is_clocked]:
        loaded = measured.loaded.get(peer.name)
        rows.append(
            (
                peer.name,
                _percentiles(measured.steady[peer.name]),
                _number(measured.p50_over_floor.get(peer.name), 2),
                _percentiles([] if loaded is None else [loaded.run]),
                "" if loaded is None else f"{loaded.share:.0%}, {loaded.run.per_second:,.0f} a second",
                *(_number(value) for value in _idle(measured.idle[peer.name])),
                _number(measured.idle_cpu.get(peer.name)),
                _number(_median_of(idle.opened_per_second for idle in measured.idle[peer.name])),
            )
        )
    return Table(columns, rows)


def _goals(measured: "Measured") -> Table:
    return Table(("goal", "measured", "at most"), list(_goal_rows(measured)))


def _goal_rows(measured: "Measured") -> Iterator[tuple[str, str, str]]:
    for what, goals, runs in (
        ("one outstanding", GOALS, {name: measured.closed[name, MAIN] for name in (OURS, *GOALS)}),
        ("burst", BURST_GOALS, measured.burst),
    ):
        for name, limit in goals.items():
            if (ratio := _over(runs[OURS], runs[name])) is not None:
                yield f"{what}, over {name}", f"{ratio:.2f}", goal(limit, ratio, "")
    if (ratio := measured.p50_over_floor.get(OURS)) is not None:
        yield "p50 at 1,000 a second, over floor", f"{ratio:.2f}", goal(P50_GOAL, ratio, "")
    _, all_kib, more_kib = _idle(measured.idle[OURS])
    if all_kib is not None:
        yield "memory of each of 5,000 idle sockets", f"{all_kib:.1f} KiB", goal(IDLE_GOAL_KIB, all_kib, " KiB")
    if more_kib is not None:
        yield "memory of each more after 1,000", f"{more_kib:.1f} KiB", goal(MORE_GOAL_KIB, more_kib, " KiB")
    if measured.beside_stalled is not None:
        yield _beside_stalled(*measured.beside_stalled)


def _beside_stalled(alone: Run, beside: Run) -> tuple[str, str, str]:
    """Of the same five subscribers of one job, without and with five more that read nothing."""
    what = f"p50 / p99 ms of those who read, at {alone.per_second:,.0f} a second, five beside them read nothing"
    return what, f"{beside.p50_ms:.2f} / {beside.p99_ms:.2f}", f"alone: {alone.p50_ms:.2f} / {alone.p99_ms:.2f}"


def _figures(measured: "Measured", peers: Sequence[Peer]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for peer in peers:
        for shape in (MAIN, BUSY, MANY):
            if (cost := _cost(measured.closed[peer.name, shape])) is not None:
                figures[f"{peer.name}_us_{shape.jobs}x{shape.subscribers}"] = round(cost, 2)
        if (burst := _cost(measured.burst[peer.name])) is not None:
            figures[f"{peer.name}_burst_us"] = round(burst, 2)
        _, all_kib, more_kib = _idle(measured.idle[peer.name])
        if all_kib is not None and more_kib is not None:
            figures[f"{peer.name}_idle_kib"] = round(all_kib, 1)
            figures[f"{peer.name}_more_kib"] = round(more_kib, 1)
    return figures


def _cost(runs: Sequence[Run]) -> float | None:
    return _median_of(run.cost_us for run in runs)


def _idle(rounds: "Sequence[Idle]") -> tuple[float | None, float | None, float | None]:
    """KiB per socket: of the first thousand, of all, of each of the last four thousand."""
    return (
        _median_of(idle.first_kib for idle in rounds),
        _median_of(idle.all_kib for idle in rounds),
        _median_of(idle.more_kib for idle in rounds),
    )


def _over(ours: Sequence[Run], theirs: Sequence[Run]) -> float | None:
    """What ours costs over theirs, turn by turn."""
    if not ours or not theirs:
        return None
    return statistics.median(one.cost_us / other.cost_us for one, other in zip(ours, theirs, strict=True))


def _percentiles(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    return f"{statistics.median(run.p50_ms for run in runs):.2f} / {statistics.median(run.p99_ms for run in runs):.2f}"


def _median_of(values: Iterable[float]) -> float | None:
    """None: there are none."""
    found = list(values)
    return statistics.median(found) if found else None


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
