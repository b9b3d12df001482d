"""`python -m tests.faults.claimant DATABASE_URL STEPS SEED`: one of many that claim every job there is, and end it."""

import os
import random
import sys
import time
from pathlib import Path

import sqlalchemy as sa

from epochcast.events import EventId
from epochcast.jobs import Status
from shared.attempt import AttemptRecord
from shared.claims import Claim, claim
from shared.database import Database, DatabaseUnavailable
from shared.tables import jobs, placements
from tests.shared.records import IDENTITY
from worker.job_state import complete_message


def main() -> None:
    url, steps, seed = sys.argv[1:]
    database = Database(url)
    with database.read() as connection:
        placed = sa.select(placements.c.job_id, placements.c.host).join(jobs, jobs.c.id == placements.c.job_id)
        rows = [(row.job_id, row.host) for row in connection.execute(placed)]
    random.Random(seed).shuffle(rows)
    sys.stdin.read(1)  # all begin at once
    won = 0
    for job_id, host in rows:
        claimed = attempted(database, job_id, host)
        if claimed is not None:
            won += 1
            note(Path(steps) / f"{job_id}.steps", claimed.job.attempt, "claimed")
            end(database, claimed)
    print(won)


def attempted(database: Database, job_id: int, host: str) -> Claim | None:
    """Eight at once on SQLite's one lock: a claim that had to wait for too long is tried again, as a poke would."""
    while True:
        try:
            return claim(database, job_id, host, 120, 1, IDENTITY)
        except DatabaseUnavailable:
            continue


def note(path: Path, attempt: int, step: str) -> None:
    with path.open("a") as file:
        file.write(f"{attempt} {os.getpid()} {time.monotonic():.6f} {step}\n")


def end(database: Database, claimed: Claim) -> None:
    """As a supervisor whose trainer had nothing to say."""
    record = AttemptRecord(database, claimed, archive_limit_bytes=2**20, checkpoints_kept=2)
    generation = claimed.job.generation
    while True:
        try:
            record.finish(
                Status.SUCCEEDED,
                seq=2,
                prev=EventId(generation, 1),
                make_event=complete_message({}),
                lease_s=0,
                outcome="succeeded",
            )
            return
        except DatabaseUnavailable:
            continue


if __name__ == "__main__":
    main()
