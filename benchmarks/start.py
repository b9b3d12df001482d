"""How long until the first report: a platform's job, warm and cold, against `python train.py` and plain Celery.

The script needs torch, makes one optimizer step and reports. The clock starts before the HTTP request (the spawn, the
Celery publish) and stops when a subscriber has the report.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import redis
from celery import Celery

from benchmarks.harness import alone, forking, plain_celery
from benchmarks.harness.result import Result, Table, goal, median, spread
from benchmarks.harness.submitting import Client, platform_for, wait_gone
from shared.embedded import RedisServer

SCRIPTS = Path(__file__).parent / "scripts"
SCRIPT = SCRIPTS / "first_step" / "train.py"
WITH_REDIS = SCRIPTS / "first_step_redis" / "train.py"
# Read when torch is loaded, so a process that has loaded it can't become this job: it begins cold.
FORCES_COLD = {"OMP_PROC_BIND": "false"}

WARM_GOAL_MS, FORK_GOAL_MS, COLD_GOAL_MS = 100, 25, 300


@dataclass(frozen=True, slots=True)
class Start:
    """Milliseconds: to the first report (the fork alone: to the first optimizer step), and of them the script's own."""

    total: float
    own: float


class Ways:
    """The ways to start a script, each with what it needs, used as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        with self._closing:
            self._client = self._closing.enter_context(platform_for(SCRIPT, self._folder / "platform"))
            self._redis = self._closing.enter_context(RedisServer(self._folder / "redis", persistent=True))
            self._threads = self._client.threads()
            environment = alone.environment(self._threads)
            self._celery = self._closing.enter_context(plain_celery.serve(self._redis.url, environment, self._folder))
            self._fork_server = self._closing.enter_context(forking.fork_server(self._threads))
            self._closing = self._closing.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def python(self) -> Start:
        ran = alone.run(SCRIPT, self._threads, folder=self._folder, until=lambda line: line.startswith("[report]"))
        return Start(1000 * (ran.at - ran.spawned), own_ms(ran.times))

    def celery(self) -> Start:
        return by_celery(self._celery, self._redis)

    def warm(self) -> Start:
        return as_job(self._client)

    def cold(self) -> Start:
        return as_job(self._client, FORCES_COLD)

    def fork(self) -> Start:
        asked, times = forking.run(self._fork_server, SCRIPT, self._threads, self._folder)
        return Start(1000 * (times["stepped"] - asked), own_ms(times))


def as_job(client: Client, env: dict[str, str] | None = None) -> Start:
    seen = client.run(env=env)
    wait_gone(seen.job_id, client.work_dir)
    times = alone.printed_times(seen.lines)
    return Start(1000 * (seen.first_report - seen.submitted), own_ms(times))


def by_celery(app: Celery, server: RedisServer) -> Start:
    with server.client() as client, client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe("first-step")
        while not client.pubsub_numsub("first-step")[0][1]:
            time.sleep(0.001)
        began = time.monotonic()
        app.send_task(plain_celery.train.name, args=(str(WITH_REDIS), server.url, "first-step-log", "first-step"))
        times = json.loads(next_message(channel))
        return Start(1000 * (time.monotonic() - began), own_ms(times))


def next_message(channel: redis.client.PubSub) -> bytes:
    deadline = time.monotonic() + 60
    while (message := channel.get_message(timeout=1.0)) is None:
        if time.monotonic() > deadline:
            raise RuntimeError("the Celery task's script reported nothing within a minute")
    return bytes(message["data"])


def own_ms(times: dict[str, float]) -> float:
    return 1000 * (times["reported"] - times["began"])


def measure(rounds: int, uncounted: int = 1) -> dict[str, list[Start]]:
    """Every way once a round, each round beginning with another, after rounds that don't count."""
    found: dict[str, list[Start]] = {}
    with tempfile.TemporaryDirectory(prefix="epochcast-bench-") as folder, Ways(Path(folder)) as ways:
        turns: list[tuple[str, Callable[[], Start]]] = [(name, getattr(ways, name)) for name in (*NAMES, "fork")]
        for number in range(-uncounted, rounds):
            first = number % len(turns)
            for name, way in turns[first:] + turns[:first]:
                start = way()
                if number >= 0:
                    found.setdefault(name, []).append(start)
    return found


NAMES = {
    "python": "`python train.py`, to its printed line",
    "celery": "plain Celery: a task runs it, it XADDs and PUBLISHes",
    "warm": "epochcast",
    "cold": "epochcast, made to start cold",
}


def result_of(found: dict[str, list[Start]], rounds: int) -> Result:
    total = {name: [start.total for start in starts] for name, starts in found.items()}
    own = {name: [start.own for start in starts] for name, starts in found.items()}
    # Way against way within a round: the machine's mood changes over minutes.
    over_python = {
        name: [here - there for here, there in zip(values, total["python"], strict=True)]
        for name, values in total.items()
    }
    ratio = {
        name: median([here / there for here, there in zip(values, total["python"], strict=True)])
        for name, values in total.items()
    }
    ways = [
        (
            text,
            spread(total[name]),
            spread(own[name]),
            "" if name == "python" else spread(over_python[name]),
            f"{ratio[name]:.2f}",
        )
        for name, text in NAMES.items()
    ]
    over_own = [start.total - start.own for start in found["warm"]]
    goals = [
        _judged("epochcast: submit to first report, less the script's own time", over_own, WARM_GOAL_MS),
        _judged("the fork server alone: asked, to the first optimizer step", total["fork"], FORK_GOAL_MS),
        _judged("cold: over `python train.py`", over_python["cold"], COLD_GOAL_MS),
    ]
    return Result(
        "start",
        "From submit to the first report",
        f"A script that loads torch, makes one optimizer step and reports. Milliseconds, medians of {rounds}, with the "
        "lowest and the highest.",
        [
            Table(("way", "to the first report", "the script's own", "over python", "ratio"), ways),
            Table(("what", "ms", "goal"), goals),
        ],
        {
            **{f"{name}_ms": round(median(values), 1) for name, values in total.items()},
            **{f"{name}_own_ms": round(median(values), 1) for name, values in own.items() if name in NAMES},
            **{f"{name}_over_python": round(value, 3) for name, value in ratio.items() if name in NAMES},
            "warm_over_own_ms": round(median(over_own), 1),
            "cold_over_python_ms": round(median(over_python["cold"]), 1),
        },
        [
            "Through the platform: the clock runs from before the HTTP request until a WebSocket subscriber has the "
            "report. Token, SQL, placement, Celery, bundle, launcher, journal, Redis and relay are in between.",
            "The script's own time: from its first line to its report. In a job torch is loaded before the first line.",
            "All ways take turns in one run, with the same threads and OpenMP settings; differences and ratios are "
            "taken within a round.",
            f"Cold is forced by `env` {FORCES_COLD}, which torch reads while it is loaded.",
        ],
    )


def _judged(what: str, values: list[float], limit_ms: float) -> tuple[str, str, str]:
    return what, spread(values), goal(limit_ms, median(values), " ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--uncounted", type=int, default=1, help="rounds before those")
    options = parser.parse_args()
    result_of(measure(options.rounds, options.uncounted), options.rounds).show()


if __name__ == "__main__":
    main()
