"""A script run by hand: `python train.py`, with the environment that a job's trainer gets."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.processes import dies_with_parent


@dataclass(frozen=True, slots=True)
class Ran:
    """Times are CLOCK_MONOTONIC seconds. `at`: when the first line that was waited for had come."""

    spawned: float
    at: float
    exited: float
    times: dict[str, Any]
    """What the script printed about itself."""


def environment(threads: int) -> dict[str, str]:
    """This one, with what `worker/workspace.py` sets for a trainer and decides how fast it computes."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
    }


def run(
    script: Path, threads: int, args: Sequence[str] = (), *, folder: Path, until: Callable[[str], bool] = bool
) -> Ran:
    """Runs the script in `folder` to its end. Raises RuntimeError when it fails or prints no times."""
    spawned = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(script), *args],
        cwd=folder,
        env=environment(threads),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=dies_with_parent(),
    )
    assert process.stdout is not None
    at, lines = 0.0, []
    with process.stdout as output:
        for line in output:
            if not at and until(line):
                at = time.monotonic()
            lines.append(line)
    code = process.wait()
    if code != 0:
        raise RuntimeError(f"{script} ended with code {code}")
    return Ran(spawned, at, time.monotonic(), printed_times(lines))


def printed_times(lines: Iterable[str]) -> dict[str, Any]:
    """The JSON object that a script printed as its last word."""
    for line in reversed(list(lines)):
        if line.startswith("{"):
            times: dict[str, Any] = json.loads(line)
            return times
    raise RuntimeError("the script printed no times")
