"""A running job's members as member 0 sees them: how each stands, what it says, and what it is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from epochcast.jobs import JobError
from shared.database import Database
from shared.gang import order_members
from shared.rows import Row
from shared.tables import member_messages, members

_MESSAGES_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class MemberState:
    """One member's row. `failed_at`: when its first rank failed, by the database's clock."""

    member: int
    host: str
    has_lease: bool
    draining: bool
    error: JobError | None
    failed_at: float | None
    outcome: str | None
    """How it ended; None while it has not said so."""
    reason: str | None
    exit_code: int | None

    @property
    def is_gone(self) -> bool:
        """Ended, or its lease has run out, and with it every process it had."""
        return self.outcome is not None or not self.has_lease


@dataclass(frozen=True, slots=True)
class MemberMessage:
    member: int
    seq: int
    payload: bytes


class GangRecord:
    """Methods raise DatabaseUnavailable when SQL is away."""

    def __init__(self, database: Database, job_id: int, generation: int) -> None:
        self._database = database
        self._job_id = job_id
        self._generation = generation

    def look(self, taken: Mapping[int, int]) -> tuple[list[MemberState], list[MemberMessage]]:
        """Every member, 0 too, and what they said since. `taken`: the last `seq` that was taken of each."""
        with self._database.read() as connection:
            # The messages after the rows: of a member that has ended everything it said is seen.
            rows = connection.execute(
                sa.select(members, (members.c.lease_until >= self._database.now).label("has_lease"))
                .where(members.c.job_id == self._job_id, members.c.generation == self._generation)
                .order_by(members.c.member)
            ).all()
            found = connection.execute(
                sa.select(member_messages.c.member, member_messages.c.seq, member_messages.c.payload)
                .where(self._messages)
                .order_by(member_messages.c.member, member_messages.c.seq)
                .limit(_MESSAGES_AT_ONCE)
            ).all()
        said = [MemberMessage(row.member, row.seq, bytes(row.payload)) for row in found]
        return [_state(row) for row in rows], [one for one in said if one.seq > taken.get(one.member, 0)]

    def forget(self, messages: Sequence[MemberMessage]) -> None:
        """They were taken: their senders may send more."""
        with self._database.write() as connection:
            for one in messages:
                this = sa.and_(member_messages.c.member == one.member, member_messages.c.seq <= one.seq)
                connection.execute(member_messages.delete().where(self._messages, this))

    def order(self, order: str) -> int:
        """Tells all other members to `drain` or to `kill`. Returns how many had not been told."""
        with self._database.write() as connection:
            return order_members(connection, self._job_id, self._generation, order)

    @property
    def _messages(self) -> sa.ColumnElement[bool]:
        return sa.and_(member_messages.c.job_id == self._job_id, member_messages.c.generation == self._generation)


def _state(row: Row) -> MemberState:
    return MemberState(
        member=row.member,
        host=row.host,
        has_lease=bool(row.has_lease),
        draining=row.draining,
        error=JobError.model_validate(row.error) if row.error else None,
        failed_at=row.failed_at,
        outcome=row.outcome if row.ended_at is not None else None,
        reason=row.reason,
        exit_code=row.exit_code,
    )
