"""What one report costs the training loop: `run.report()` against what people call there instead.

Each call is timed alone, in rounds that take turns. Behind `run.report()` stands a process that reads its packets, as a
supervisor does, and counts them: every report must have arrived. Beside it, what a script waits for `import epochcast`.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.job_file import write_job_file
from benchmarks.harness.result import Result, Table, goal, median, percentile
from shared.embedded import RedisServer

GOAL_US = 15
IMPORT_GOAL_MS = 50
Call = Callable[[int], object]

# A process of its own, as the supervisor is: a thread would share the loop's interpreter lock.
COUNT = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
connection, _ = listener.accept()
count = 0
while connection.recv(65536):
    count += 1
print(count)
"""


# In a Python that has loaded nothing; `epochcast.init` brings what a script uses.
IMPORT = """
import time
began = time.perf_counter()
{line}
print((time.perf_counter() - began) * 1000)
"""
IMPORTS = {
    "epochcast": "import epochcast; epochcast.init",
    "torch": "import torch",
    "tensorboard": "from torch.utils.tensorboard import SummaryWriter",
    "mlflow": "import mlflow",
}


@dataclass(frozen=True, slots=True)
class Way:
    """`share`: which part of the calls; slow ones would take all the time."""

    name: str
    text: str
    share: float
    open: Callable[[Path], Iterator[Call]]


def by_report(folder: Path) -> Iterator[Call]:
    """Yields the call; at its end everything that was reported has been counted."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{folder}/socket")
    listener.listen()
    counter = subprocess.Popen(
        [sys.executable, "-c", COUNT, str(listener.fileno())],
        pass_fds=(listener.fileno(),),
        stdout=subprocess.PIPE,
        text=True,
    )
    listener.close()
    os.environ |= {"EPOCHCAST_SOCKET": f"{folder}/socket", "EPOCHCAST_JOB": str(write_job_file(folder))}

    import epochcast

    run, reported = epochcast.init(), 0

    def report(number: int) -> None:
        nonlocal reported
        reported += 1
        run.report(epoch=number, train_loss=0.0234, val_loss=0.0289)

    try:
        yield report
    finally:
        run.close()
        arrived, _ = counter.communicate(timeout=60)
    if int(arrived) != reported:
        raise RuntimeError(f"{reported} reports were made, {arrived.strip()} arrived")


def by_xadd(folder: Path) -> Iterator[Call]:
    with RedisServer(folder / "redis", persistent=True) as server, server.client() as client:
        yield lambda number: client.xadd("log", {"epoch": number, "train_loss": 0.0234, "val_loss": 0.0289})


def by_tensorboard(folder: Path) -> Iterator[Call]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "runs")) as writer:
        yield lambda number: writer.add_scalar("train_loss", 0.0234, number)


def by_mlflow_files(folder: Path) -> Iterator[Call]:
    # Its own words: in maintenance mode, opened by this variable.
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    return _by_mlflow((folder / "mlruns").as_uri())


def by_mlflow_sqlite(folder: Path) -> Iterator[Call]:
    return _by_mlflow(f"sqlite:///{folder}/mlflow.db")


def _by_mlflow(uri: str) -> Iterator[Call]:
    """By run id and client: the two stores take turns in one process, which has only one active run."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # it would send its use of itself to its makers
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("bench")).info.run_id
    yield lambda number: client.log_metric(run, "train_loss", 0.0234, step=number)


WAYS = (
    Way("report", "`run.report()`, two metrics", 1, by_report),
    Way("xadd", "Redis XADD from the loop, two metrics", 1, by_xadd),
    Way("tensorboard", "`SummaryWriter.add_scalar`, one metric", 1, by_tensorboard),
    Way("mlflow-files", "MLflow `log_metric`, one metric, files", 0.1, by_mlflow_files),
    Way("mlflow-sqlite", "MLflow `log_metric`, one metric, SQLite", 0.05, by_mlflow_sqlite),
)


def measure(ways: tuple[Way, ...], rounds: int, calls: int) -> dict[str, list[float]]:
    """Microseconds of every call, by way."""
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="epochcast-bench-") as name, ExitStack() as opened:
        callers = []
        for way in ways:
            folder = Path(name) / way.name
            folder.mkdir()
            callers.append((way, opened.enter_context(contextmanager(way.open)(folder))))
        for round_ in range(rounds + 1):
            first = round_ % len(callers)
            for way, call in callers[first:] + callers[:first]:
                times = _timed(call, max(2, round(calls * way.share)))
                if round_:  # the first round warms up
                    found[way.name] += times
    return found


def _timed(call: Call, count: int) -> list[float]:
    times = []
    for number in range(1, count + 1):
        start = time.perf_counter_ns()
        call(number)
        times.append((time.perf_counter_ns() - start) / 1000)
    return times


def measure_imports(names: list[str], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, in turns; the first round brings the files into memory."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds + 1):
        for name in names:
            program = IMPORT.format(line=IMPORTS[name])
            said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
            if round_:
                found[name].append(float(said))
    return found


def imports_table(imports: dict[str, list[float]]) -> Table:
    rows = [
        (
            f"`{IMPORTS[name]}`",
            f"{median(times):,.0f}",
            f"{min(times):,.0f}",
            goal(IMPORT_GOAL_MS, median(times), " ms") if name == "epochcast" else "",
        )
        for name, times in imports.items()
    ]
    return Table(("in a new Python", "median ms", "lowest ms", "goal"), rows)


def result_of(ways: tuple[Way, ...], found: dict[str, list[float]], imports: dict[str, list[float]]) -> Result:
    medians = {name: median(times) for name, times in found.items()}
    p99 = {name: percentile(times, 99) for name, times in found.items()}
    rows = [
        (
            way.text,
            f"{medians[way.name]:,.1f}",
            f"{p99[way.name]:,.0f}",
            f"{medians[way.name] / medians['report']:,.1f}",
            f"{len(found[way.name]):,}",
            goal(GOAL_US, medians["report"], " µs") if way.name == "report" else "",
        )
        for way in ways
    ]
    figures = {f"{name}_us": round(value, 1) for name, value in medians.items()}
    return Result(
        "report",
        "One report in the training loop",
        "How long the call holds up the loop.",
        [
            Table(("call", "median µs", "p99 µs", "over `run.report()`", "calls", "goal"), rows),
            imports_table(imports),
        ],
        figures
        | {f"{name}_p99_us": round(value, 1) for name, value in p99.items()}
        | {f"import_{name}_ms": round(median(times), 1) for name, times in imports.items()},
        [
            "`run.report()` returns when the kernel has the packet, so a crash right after it loses nothing; the "
            "process behind it counted every one. `add_scalar` returns when the scalar is in a queue of this process.",
            "Called in a tight loop, so the receiver may be the slower one; then the call waits for room.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=2000, help="a round, of the fast ways")
    parser.add_argument("--only", nargs="+", choices=[way.name for way in WAYS], default=[way.name for way in WAYS])
    options = parser.parse_args()
    if "report" not in options.only:
        parser.error("the others are compared with `report`: it can't be left out")
    ways = tuple(way for way in WAYS if way.name in options.only)
    packages = ("epochcast", "torch", *(way.name.partition("-")[0] for way in ways))
    imports = measure_imports([name for name in IMPORTS if name in packages], options.rounds)
    result_of(ways, measure(ways, options.rounds, options.calls), imports).show()


if __name__ == "__main__":
    main()
