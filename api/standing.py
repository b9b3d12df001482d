"""Where jobs stand in the record: what the relay compares its subscribers with, many jobs in one query."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from epochcast.events import EventId
from epochcast.jobs import Status
from shared.database import Database
from shared.tables import jobs


@dataclass(frozen=True, slots=True)
class Standing:
    """`last`: the newest event that SQL knows of; of an ended job, its terminal event."""

    status: Status
    last: EventId

    @property
    def is_terminal(self) -> bool:
        return self.status.is_terminal


def standings(database: Database, job_ids: Sequence[int]) -> dict[int, Standing]:
    """Raises DatabaseUnavailable."""
    columns = (jobs.c.id, jobs.c.status, jobs.c.last_generation, jobs.c.last_seq)
    with database.read() as connection:
        rows = connection.execute(sa.select(*columns).where(jobs.c.id.in_(job_ids)))
        return {row.id: Standing(Status(row.status), EventId(row.last_generation, row.last_seq)) for row in rows}
