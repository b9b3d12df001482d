"""How many jobs there are, by status: one query per scrape."""

import sqlalchemy as sa

from epochcast.jobs import Status
from shared.database import Database
from shared.tables import jobs


def jobs_by_status(database: Database) -> dict[Status, int]:
    """Every status, also those that no job has. Raises DatabaseUnavailable."""
    with database.read() as connection:
        rows = connection.execute(sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status))
        counted = {Status(status): int(count) for status, count in rows}
    return {status: counted.get(status, 0) for status in Status}
