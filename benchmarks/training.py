"""What the platform costs a training: a script as a job against the same script alone, in turns.

Once for about a minute with a checkpoint each epoch, once with 50 very short epochs, the worst case.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import alone
from benchmarks.harness.result import Result, Table, goal, median, spread
from benchmarks.harness.submitting import Client, platform_for, wait_gone

SCRIPT = Path(__file__).parent / "scripts" / "digits" / "train.py"
LONG_GOAL, SHORT_GOAL = 1.01, 1.05
TRIAL_EPOCHS = 3


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds. `wall`: from submit (spawn) to `complete` (exit). `loop`: the epochs. `loading`: the script's imports.
    `rest`: from there to its last line."""

    wall: float
    loop: float
    loading: float
    rest: float


@dataclass(frozen=True, slots=True)
class Pair:
    """One training both ways, one right after the other."""

    job: Timed
    alone: Timed

    @property
    def whole(self) -> float:
        """Of the script from its start to its end, loading torch counted as it is by hand: in a job it is there."""
        return (self.alone.loading + self.job.rest) / (self.alone.loading + self.alone.rest)

    @property
    def loop(self) -> float:
        return self.job.loop / self.alone.loop

    @property
    def wall(self) -> float:
        return self.job.wall / self.alone.wall


class Bench:
    """A platform and a folder for what is run by hand."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._threads = client.threads("--network=mlp", "--epochs=1")

    def pairs(self, args: list[str], epochs: int, repetitions: int) -> list[Pair]:
        """Alternating which way comes first."""
        found = []
        args = [*args, f"--epochs={epochs}"]
        for number in range(repetitions):
            if number % 2:
                job = self.as_job(args, epochs)
                found.append(Pair(job, self.alone(args)))
            else:
                by_hand = self.alone(args)
                found.append(Pair(self.as_job(args, epochs), by_hand))
        return found

    def epochs_for(self, args: list[str], seconds: float) -> int:
        """How many epochs take that long here."""
        trial = self.alone([*args, f"--epochs={TRIAL_EPOCHS}"])
        return max(1, round(seconds / (trial.loop / TRIAL_EPOCHS)))

    def alone(self, args: list[str]) -> Timed:
        ran = alone.run(SCRIPT, self._threads, [*args, "--alone"], folder=self._folder)
        return self._timed(ran.exited - ran.spawned, ran.times)

    def as_job(self, args: list[str], epochs: int) -> Timed:
        seen = self._client.run(args=args, epochs=epochs)
        wait_gone(seen.job_id, self._client.work_dir)
        return self._timed(seen.ended - seen.submitted, alone.printed_times(seen.lines))

    def _timed(self, wall: float, times: dict[str, Any]) -> Timed:
        computed_with = (times["threads"], times["waits"])
        if computed_with != (self._threads, "PASSIVE"):
            raise RuntimeError(f"not comparable: computed with {computed_with}, the other with {self._threads} threads")
        end = times["last_line"]
        loading = times["imported"] - times["first_line"]
        return Timed(wall, end - times["loop_began"], loading, end - times["imported"])


def rows_of(pairs: list[Pair], wall_goal: str, whole_goal: str) -> list[tuple[str, ...]]:
    loop, whole, wall = ([getattr(pair, name) for pair in pairs] for name in ("loop", "whole", "wall"))
    return [
        _row("submit to `complete`; start to exit", [(p.job.wall, p.alone.wall) for p in pairs], wall, wall_goal),
        _row(
            "the script, loading torch counted alike",
            [(p.alone.loading + p.job.rest, p.alone.loading + p.alone.rest) for p in pairs],
            whole,
            whole_goal,
        ),
        _row("its epochs alone", [(p.job.loop, p.alone.loop) for p in pairs], loop, ""),
    ]


def _row(what: str, times: list[tuple[float, float]], ratios: list[float], judged: str) -> tuple[str, ...]:
    job, by_hand = ([time[way] for time in times] for way in (0, 1))
    return what, spread(job, 2), spread(by_hand, 2), spread(ratios, 3), judged


def measure(seconds: float, repetitions: int, short_repetitions: int, short_epochs: int) -> Result:
    with (
        tempfile.TemporaryDirectory(prefix="epochcast-bench-") as folder,
        platform_for(SCRIPT, Path(folder) / "platform") as client,
    ):
        bench = Bench(client, Path(folder))
        minute = ["--network=cnn", "--checkpoints"]
        epochs = bench.epochs_for(minute, seconds)
        long = bench.pairs(minute, epochs, repetitions)
        short = bench.pairs(["--network=mlp"], short_epochs, short_repetitions)
    return result_of(long, epochs, short, short_epochs)


def result_of(long: list[Pair], epochs: int, short: list[Pair], short_epochs: int) -> Result:
    columns = ("as a job, s", "alone, s", "ratio", "goal")
    long_wall = median([pair.wall for pair in long])
    short_whole = median([pair.whole for pair in short])
    figures = {}
    for name, pairs in (("long", long), ("short", short)):
        for figure in ("wall", "whole", "loop"):
            figures[f"{name}_{figure}_ratio"] = round(median([getattr(pair, figure) for pair in pairs]), 4)
    return Result(
        "training",
        "A whole training",
        "A network on scikit-learn's digits as a job, against the same file by hand, which then prints its epochs and "
        "saves its checkpoints itself. Medians, with the lowest and the highest.",
        [
            Table(
                (f"{epochs} epochs, a checkpoint each, n = {len(long)}", *columns),
                rows_of(long, goal(LONG_GOAL, long_wall, ""), ""),
            ),
            Table(
                (f"{short_epochs} very short epochs, n = {len(short)}", *columns),
                rows_of(short, "", goal(SHORT_GOAL, short_whole, "")),
            ),
        ],
        figures,
        [
            "Job and script alone take turns; the ratio is taken within a pair. Same threads, same OpenMP settings.",
            "`complete` comes after the last checkpoint and the log are stored and the record is written.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="7 long trainings each way instead of 2")
    parser.add_argument("--seconds", type=float, default=60, help="how long the long training is")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--short-repetitions", type=int, default=7)
    parser.add_argument("--short-epochs", type=int, default=50)
    options = parser.parse_args()
    repetitions = 7 if options.full else options.repetitions
    measure(options.seconds, repetitions, options.short_repetitions, options.short_epochs).show()


if __name__ == "__main__":
    main()
