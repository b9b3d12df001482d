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


def active(database: Database, owner: str | None) -> dict[int, Standing]:
    """The jobs that have not ended, of one owner or (None) of everybody. Raises DatabaseUnavailable."""
    is_active = jobs.c.status.in_([status for status in Status if not status.is_terminal])
    return _standings(database, is_active if owner is None else is_active & (jobs.c.owner == owner))


def standings(database: Database, job_ids: Sequence[int]) -> dict[int, Standing]:
    """Raises DatabaseUnavailable."""
    return _standings(database, jobs.c.id.in_(job_ids))


def _standings(database: Database, condition: sa.ColumnElement[bool]) -> dict[int, Standing]:
    columns = (jobs.c.id, jobs.c.status, jobs.c.last_generation, jobs.c.last_seq)
    with database.read() as connection:
        rows = connection.execute(sa.select(*columns).where(condition))
        return {row.id: Standing(Status(row.status), EventId(row.last_generation, row.last_seq)) for row in rows}
