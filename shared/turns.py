"""Whose turn a dispatcher's pass is: one each second for a whole fleet, however many dispatchers there are."""

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from shared.database import Database
from shared.tables import turns

PASS = "pass"
# For those who can't do all of a pass: Redis is away from them, or from everybody.
LAME_PASS = "lame pass"


class Turns:
    """No leader and no lock: a turn is taken by the clock alone, so that whoever stops taking them is not missed.

    `name`: who takes turns with whom. Methods raise DatabaseUnavailable when SQL is away.
    """

    def __init__(self, database: Database, every_s: float, name: str = PASS) -> None:
        self._database = database
        self._every_s = every_s
        self._name = name

    def take(self) -> bool:
        """True for one of all who ask within `every_s`."""
        now = self._database.now
        # Taken in times to come: by a clock that was wrong (SQLite has everybody's own), and nobody waits for it.
        due = sa.or_(turns.c.taken_at <= now - self._every_s, turns.c.taken_at > now + self._every_s)
        with self._database.read() as connection:
            # Read first: most who ask come too early, and SQLite has one write lock.
            row = connection.execute(sa.select(due).where(turns.c.name == self._name)).one_or_none()
        if row is not None and not row[0]:
            return False
        if row is None:
            return self._begin()
        with self._database.write() as connection:
            taken = turns.update().where(turns.c.name == self._name, due).values(taken_at=self._database.now)
            return connection.execute(taken).rowcount == 1

    def _begin(self) -> bool:
        """The first turn of a new database."""
        try:
            with self._database.write() as connection:
                connection.execute(turns.insert().values(name=self._name, taken_at=self._database.now))
        except IntegrityError:
            return False
        return True
