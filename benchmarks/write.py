"""Runs the benchmarks, keeps their results with machine and versions, and writes `docs/benchmarks.md` from them.

A benchmark is a module of this folder that prints one JSON object as its last line, with its name as "benchmark";
with "title", "about", "tables", "notes" (`harness/result.py`) the page shows it well, without them as it is.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from benchmarks.harness.page import page_of
from benchmarks.harness.record import RESULTS, Record, load_all

CHECKOUT = Path(__file__).parents[1]
PAGE = CHECKOUT / "docs" / "benchmarks.md"


def benchmarks() -> list[str]:
    """Every module of this folder but this one."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path != Path(__file__))


def run(name: str, arguments: list[str]) -> Record:
    """Raises RuntimeError when the benchmark fails or ends with no JSON."""
    print(f"\n== {name}", flush=True)
    load, began = os.getloadavg()[0], time.monotonic()
    command = ["-m", f"benchmarks.{name}", *arguments]
    process = subprocess.Popen([sys.executable, "-u", *command], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    with process.stdout as output:
        for line in output:
            if last:
                print(last, end="", flush=True)
            last = line
    if process.wait() != 0:
        raise RuntimeError(f"benchmark {name} ended with code {process.returncode}")
    return Record(
        measured=datetime.now(UTC).strftime("%Y-%m-%d"),
        command=" ".join(["python", *command]),
        seconds=round(time.monotonic() - began, 1),
        load=round(load, 2),
        machine=machine.describe(),
        versions=machine.versions(),
        result=result(name, last),
    )


def result(name: str, line: str) -> dict[str, Any]:
    """What a benchmark's last line says. Raises RuntimeError when that isn't its JSON."""
    try:
        said = json.loads(line)
    except ValueError:
        raise RuntimeError(f"benchmark {name} ended with {line[:100]!r} and not with its JSON") from None
    if not isinstance(said, dict) or said.get("benchmark") != name:
        raise RuntimeError(f'the last line of benchmark {name} is no JSON object with "benchmark": "{name}"')
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=benchmarks(), default=benchmarks(), help="the others stay as saved"
    )
    parser.add_argument("--full", action="store_true", help="more repetitions where one run takes minutes")
    parser.add_argument("--page-only", action="store_true", help="measure nothing; write the page from what is saved")
    options = parser.parse_args()
    began = time.monotonic()
    failed = []
    for name in [] if options.page_only else options.only:
        try:
            run(name, ["--full"] if options.full and name == "training" else []).save(RESULTS)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failed.append(name)
    PAGE.write_text(page_of(load_all(RESULTS)))
    print(f"\nwrote {PAGE.relative_to(CHECKOUT)} after {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
