"""Which queued job goes to which hosts and GPUs: one pass over the whole queue, all of a job's resources or none.

All or none is also why two jobs that want the same hosts can't wait for each other: none holds a part of what it needs.
A pass decides from what it has read, and writes what it decided in the same transaction.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from shared import reserving
from shared.database import Database
from shared.deciding import Pass
from shared.queue import count_waiting

_PLACING_LOCK = 6024002
# In one transaction. SQLite's other writers wait for it; on PostgreSQL only who was woken for a single job does.
PLACED_AT_ONCE = {"sqlite": 200, "postgresql": 1_000}
# So many are looked at twice with less effort than it takes to find out whether they have to be.
_SHORT_QUEUE = 20


@dataclass(frozen=True, slots=True)
class Placed:
    """One host of a job that was placed; a job on several hosts has one for each."""

    job_id: int
    host: str


def place(
    database: Database,
    *,
    running_per_owner: int | None = None,
    reserve_after_s: float = 300.0,
    forecasts: bool = True,
) -> list[Placed]:
    """Places what fits now, best job first (priority, then age), and writes why the others wait.

    The best job that fits nowhere and has waited for `reserve_after_s` gets what is free kept for it. `forecasts`:
    also writes when those who wait will start. The first poke of each that is returned is taken with its place, and is
    the caller's to send: a transaction less on the way of every job.
    """
    return [
        one for part in place_in_parts(database, Rules(running_per_owner, reserve_after_s, forecasts)) for one in part
    ]


def place_in_parts(database: Database, rules: "Rules") -> Iterator[list[Placed]]:
    """As `place`, transaction by transaction: who was placed in the first need not wait for the last."""
    passed_over: frozenset[int] = frozenset()
    if not _has_news(database, rules):
        return
    while True:
        with database.write() as connection:
            if not database.is_sqlite:
                # Held for this transaction only; who was woken waits for it (at most its statement timeout).
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_PLACING_LOCK)))
            now = database.time(connection)
            decided = Pass(connection, now, *rules.values, passed_over=passed_over).decide(
                PLACED_AT_ONCE[connection.dialect.name]
            )
            reserved, left_out = reserving.write(connection, decided, now)
        yield [Placed(one.id, seat.host.name) for one, seats in reserved for seat in seats]
        passed_over |= left_out
        if not left_out and not decided.is_cut_off:
            return


@dataclass(frozen=True, slots=True)
class Rules:
    """What `place` is given."""

    running_per_owner: int | None
    reserve_after_s: float
    forecasts: bool

    @property
    def values(self) -> tuple[int | None, float, bool]:
        return self.running_per_owner, self.reserve_after_s, self.forecasts


def _has_news(database: Database, rules: Rules) -> bool:
    """Most passes find nothing, and those over a long queue take their time: neither may hold SQLite's write lock."""
    with database.read() as connection:
        now = database.time(connection)
        waiting = count_waiting(connection, now, _SHORT_QUEUE + 1)
        if waiting <= _SHORT_QUEUE:
            return waiting > 0
        return Pass(connection, now, *rules.values).decide(1).has_news
