"""Counts of what should be rare, kept in SQL: it happens in processes that have no metrics page of their own."""

from enum import StrEnum

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite

from shared.database import Database, DatabaseUnavailable
from shared.tables import counters

logger = structlog.get_logger(__name__)


class Counted(StrEnum):
    """Each is a Prometheus counter `epochcast_<name>_total`."""

    REAPED = "reaped"
    """A running job was taken back: its lease had run out, or its host saw that its processes were gone."""
    FENCED_WRITES = "fenced_writes"
    """A supervisor, or a member's, found that the job was somebody else's, and wrote nothing."""
    DOUBLED_MESSAGES = "doubled_messages"
    """A hint came for a job that there was nothing left to claim of."""
    SELF_KILLS = "self_kills"
    """A process tree was ended because its licence had run out or its lease was lost."""


def count(connection: sa.Connection, what: Counted) -> None:
    """In the caller's transaction: counted if and only if that is committed."""
    insert = sqlite.insert(counters) if connection.dialect.name == "sqlite" else postgresql.insert(counters)
    more = {"total": counters.c.total + 1}
    connection.execute(
        insert.values(name=what.value, total=1).on_conflict_do_update(index_elements=["name"], set_=more)
    )


def count_apart(database: Database, what: Counted) -> None:
    """In a transaction of its own. Without SQL it is only logged: what is counted matters more than the count."""
    try:
        with database.write() as connection:
            count(connection, what)
    except DatabaseUnavailable as error:
        logger.warning("not counted: SQL is away", what=what.value, error=str(error))


def totals(database: Database) -> dict[Counted, int]:
    """All of them, also those that never happened. Raises DatabaseUnavailable."""
    with database.read() as connection:
        found = {name: int(total) for name, total in connection.execute(sa.select(counters.c.name, counters.c.total))}
    return {what: found.get(what.value, 0) for what in Counted}
