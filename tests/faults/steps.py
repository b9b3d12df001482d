"""The trainers' own step log: what computed when, written by the script itself past everything of the platform's.

A line is `attempt pid monotonic step`, with `rank.` before the step where there are several; one file for each job.
CLOCK_MONOTONIC is the same for all processes of a machine, and O_APPEND keeps lines whole and in order.
"""

from dataclasses import dataclass
from pathlib import Path

# Put before a script. The trainer's environment is not the platform's to extend: the file's folder stands in the text.
PREAMBLE = """
import json, os, time
def _step_log():
    with open(os.environ["EPOCHCAST_JOB"]) as file:
        told = json.load(file)
    name = os.path.join(FOLDER, f"{told['job_id']}.steps")
    log = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    rank = f"{os.environ['RANK']}." if "RANK" in os.environ else ""
    def note(step):
        os.write(log, f"{told['attempt']} {os.getpid()} {time.monotonic():.6f} {rank}{step}\\n".encode())
    return note
note_step = _step_log()
"""


def with_steps(script: str, folder: Path) -> str:
    """`script` (plain, not indented) with a function `note_step(step)` that writes to its job's log in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return PREAMBLE.replace("FOLDER", repr(str(folder))) + script


@dataclass(frozen=True, slots=True)
class Step:
    attempt: int
    pid: int
    at: float
    step: str


def read_steps(folder: Path, job_id: int) -> list[Step]:
    """In the order in which they were written; empty for a job whose script keeps no log.

    A line that is just being written (a reader may see the part of it that lies before a page's end) is left out.
    """
    path = folder / f"{job_id}.steps"
    if not path.exists():
        return []
    found = []
    *lines, _ = path.read_text().split("\n")
    for line in lines:
        attempt, pid, at, step = line.split(" ")
        found.append(Step(int(attempt), int(pid), float(at), step))
    return found
