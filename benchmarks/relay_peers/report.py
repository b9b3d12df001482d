"""What the figures say: one table of costs, one of delays and memory, and each goal met or missed."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmarks.harness.result import Result, Table, goal
from benchmarks.relay_peers.driver import Run, Shape
from benchmarks.relay_peers.peers import OURS, Peer, versions

if TYPE_CHECKING:
    from benchmarks.relay import Measured

MAIN, BUSY, MANY = Shape(200, 5), Shape(1, 10), Shape(2_000, 1)
# performance.md's, as ours over theirs.
GOALS = {"floor": 1.25, "picows": 1.1, "ws": 0.85, "queues": 0.45, "usual": 0.125}
BURST_GOALS = {"picows": 1.1, "ws": 0.6}
P50_GOAL = 1.5
IDLE_GOAL_KIB, MORE_GOAL_KIB = 35.0, 3.0


def result(measured: "Measured", peers: Sequence[Peer], rounds: int) -> Result:
    return Result(
        benchmark="relay",
        title="Relay: CPU per delivered message, delay, memory per socket",
        about=(
            "Publisher, Redis, relay, subscribers; messages of 205 bytes, each checked for order and completeness. "
            "One outstanding: a job's next message is published when all its subscribers have the last, so nobody can "
            "join frames; its µs are the relay's CPU per delivery, the median of the rounds."
        ),
        tables=[_costs(measured, peers), _delays(measured, peers), _goals(measured)],
        figures=_figures(measured, peers),
        notes=[
            f"{rounds} rounds in turns for {MAIN}, one for the others; in a burst 16 messages per job are outstanding, "
            "and ours, the floor, picows and ws join the frames of one read, the others can't.",
            "The publisher sends PUBLISH alone to all; our gateway gets its header line with it, socket.io its packet.",
            *(f"{peer.name}: {peer.text}." for peer in peers),
            *(f"{name} is missing: {why}." for name, why in measured.missing.items()),
            "; ".join(f"{name} {version}" for name, version in versions().items()),
        ],
    )


def _costs(measured: "Measured", peers: Sequence[Peer]) -> Table:
    columns = (
        "relay",
        f"µs, {MAIN}",
        "ours / it",
        f"µs, {BUSY}",
        f"µs, {MANY}",
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
                _number(measured.cost(peer.name)),
                _ratio(measured.cost(OURS), measured.cost(peer.name)),
                _number(measured.cost(peer.name, BUSY)),
                _number(measured.cost(peer.name, MANY)),
                _number(measured.burst_cost(peer.name)),
                _ratio(measured.burst_cost(OURS), measured.burst_cost(peer.name)),
                f"{max(run.per_second for run in runs):,.0f}",
            )
        )
    return Table(columns, rows)


def _delays(measured: "Measured", peers: Sequence[Peer]) -> Table:
    columns = (
        "relay",
        "p50 / p99 ms at 1,000 a second",
        "at 80 % of its speed",
        "KiB per socket, 1,000",
        "5,000",
        "each of the last 4,000",
        "CPU of 5,000 idle, ms/s",
        "opened a second",
    )
    rows = []
    for peer in [peer for peer in peers if peer.is_clocked]:
        steady, loaded = measured.steady[peer.name], measured.loaded[peer.name]
        rows.append(
            (
                peer.name,
                f"{steady.p50_ms:.2f} / {steady.p99_ms:.2f}",
                f"{loaded.p50_ms:.2f} / {loaded.p99_ms:.2f} ({loaded.per_second:,.0f} a second)",
                _number(measured.idle_kib.get((peer.name, 1_000))),
                _number(measured.idle_kib.get((peer.name, 5_000))),
                _number(measured.more_kib(peer.name)),
                _number(measured.idle_cpu.get(peer.name)),
                _number(measured.opened_per_second.get(peer.name)),
            )
        )
    return Table(columns, rows)


def _goals(measured: "Measured") -> Table:
    return Table(("goal", "measured", "at most"), list(_goal_rows(measured)))


def _goal_rows(measured: "Measured") -> Iterator[tuple[str, str, str]]:
    for what, goals, cost in (
        ("one outstanding", GOALS, measured.cost),
        ("burst", BURST_GOALS, measured.burst_cost),
    ):
        ours = cost(OURS)
        for name, limit in goals.items():
            theirs = cost(name)
            if ours is not None and theirs is not None:
                yield f"{what}, over {name}", f"{ours / theirs:.2f}", goal(limit, ours / theirs, "")
    if OURS in measured.steady and "floor" in measured.steady:
        ratio = measured.steady[OURS].p50_ms / measured.steady["floor"].p50_ms
        yield "p50 at 1,000 a second, over floor", f"{ratio:.2f}", goal(P50_GOAL, ratio, "")
    if (kib := measured.idle_kib.get((OURS, 5_000))) is not None:
        yield "memory of each of 5,000 idle sockets", f"{kib:.1f} KiB", goal(IDLE_GOAL_KIB, kib, " KiB")
    if (kib := measured.more_kib(OURS)) is not None:
        yield "memory of each more after 1,000", f"{kib:.1f} KiB", goal(MORE_GOAL_KIB, kib, " KiB")
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
            if (cost := measured.cost(peer.name, shape)) is not None:
                figures[f"{peer.name}_us_{shape.jobs}x{shape.subscribers}"] = round(cost, 2)
        if (burst := measured.burst_cost(peer.name)) is not None:
            figures[f"{peer.name}_burst_us"] = round(burst, 2)
        if (kib := measured.idle_kib.get((peer.name, 5_000))) is not None:
            figures[f"{peer.name}_idle_kib"] = round(kib, 1)
        if (kib := measured.more_kib(peer.name)) is not None:
            figures[f"{peer.name}_more_kib"] = round(kib, 1)
    return figures


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _ratio(ours: float | None, theirs: float | None) -> str:
    return "" if ours is None or theirs is None else f"{ours / theirs:.2f}"
