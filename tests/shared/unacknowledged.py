"""Commits whose answer is lost: the writer sees an outage and can't know whether its transaction happened."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from shared.database import Database


@contextmanager
def lost_answers(database: Database, *, committed: bool, count: int = 1) -> Iterator[None]:
    """The next `count` commits end in a broken connection, after (`committed`) or before the server has acted."""
    left = count

    def break_connection(connection: sa.Connection) -> None:
        nonlocal left
        if left == 0:
            return
        left -= 1
        if committed:
            driver = connection.connection.driver_connection
            assert driver is not None
            driver.commit()
        raise sa.exc.OperationalError("COMMIT", {}, ConnectionError("server closed the connection unexpectedly"))

    sa.event.listen(database.engine, "commit", break_connection)
    try:
        yield
    finally:
        sa.event.remove(database.engine, "commit", break_connection)
    assert left == 0, "fewer commits than the test meant to break"
