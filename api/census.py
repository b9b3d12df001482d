"""How many jobs and hosts there are, by status: one query of each per scrape, however large the fleet."""

from collections import Counter

import sqlalchemy as sa

from epochcast.jobs import Status
from shared.database import Database
from shared.fleet import status_of
from shared.tables import hosts, jobs


def jobs_by_status(database: Database) -> dict[Status, int]:
    """Every status, also those that no job has. Raises DatabaseUnavailable."""
    with database.read() as connection:
        rows = connection.execute(sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status))
        counted = {Status(status): int(count) for status, count in rows}
    return {status: counted.get(status, 0) for status in Status}


def hosts_by_status(database: Database) -> dict[str, int]:
    """Those that some host has. Raises DatabaseUnavailable."""
    with database.read() as connection:
        now = database.time(connection)
        rows = connection.execute(sa.select(hosts.c.heartbeat_at, hosts.c.draining))
        return dict(Counter(status_of(heartbeat_at, draining, now) for heartbeat_at, draining in rows))
