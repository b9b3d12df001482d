"""The members of a running job for whoever ends its attempt: none of them may be left alive, and none begins anew.

Whoever moves a job on ends its member rows in the same transaction, with the rows locked: a member's renewal that
comes at the same moment is either seen here or finds its row ended. Locks are taken job first, then members by number.
"""

import sqlalchemy as sa

from shared.tables import member_messages, members


class MembersAlive(Exception):
    """Raised when an attempt can't be ended yet: some of its hosts have not ended theirs, and their leases hold."""


def live_members(connection: sa.Connection, job_id: int, generation: int, now: float) -> list[int]:
    """Members beyond 0 that may still compute (of member 0 the job's lease tells). Their rows stay locked."""
    rows = connection.execute(
        sa.select(members.c.member, members.c.lease_until)
        .where(_open(job_id, generation), members.c.member > 0)
        .order_by(members.c.member)
        .with_for_update()
    )
    return [row.member for row in rows if row.lease_until >= now]


def end_members(connection: sa.Connection, job_id: int, generation: int, now: float, outcome: str) -> None:
    """Ends every member row of an attempt, `outcome` being the attempt's own. Raises MembersAlive.

    A member that has not ended its row itself was lost: its lease has run out.
    """
    alive = live_members(connection, job_id, generation, now)
    if alive:
        raise MembersAlive(f"members {alive} of job {job_id} have not ended yet")
    how = sa.case((members.c.member == 0, outcome), else_="lost")
    ended = members.update().where(_open(job_id, generation))
    connection.execute(ended.values(ended_at=now, lease_until=0.0, outcome=how))
    mine = sa.and_(member_messages.c.job_id == job_id, member_messages.c.generation == generation)
    connection.execute(member_messages.delete().where(mine))


def order_members(connection: sa.Connection, job_id: int, generation: int, order: str) -> int:
    """Tells the members beyond 0 to `drain` or to `kill`, which a later `drain` doesn't undo. Returns how many."""
    told = members.update().where(_open(job_id, generation), members.c.member > 0)
    milder: sa.ColumnElement[bool] = members.c.ordered.is_(None)
    if order == "kill":
        milder = sa.or_(milder, members.c.ordered == "drain")
    return connection.execute(told.where(milder).values(ordered=order)).rowcount


def _open(job_id: int, generation: int) -> sa.ColumnElement[bool]:
    return sa.and_(members.c.job_id == job_id, members.c.generation == generation, members.c.ended_at.is_(None))
