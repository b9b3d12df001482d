"""A host's place in a job that trains on several: claimed alone, held until all are claimed, then started together.

Only the job's own claim (`shared/claims.py`, by member 0) starts them: it gives every waiting row the new generation
and the attempt's number in one transaction. Whoever releases or stops the job before that deletes the waiting rows.
"""

import secrets
from enum import StrEnum

import sqlalchemy as sa

from epochcast.jobs import Status
from shared.claims import Claim, Membership, ProcessIdentity, committed_checkpoints, held_gpus
from shared.database import Database
from shared.rows import hosts_of, nodes_of, training_job
from shared.tables import jobs, members, placements


class Standing(StrEnum):
    """What has become of a claimed place."""

    WAITING = "waiting"
    READY = "ready"
    """Every place is claimed: member 0 claims the job."""
    STARTED = "started"
    RELEASED = "released"


def claim_member(
    database: Database, job_id: int, host: str, lease_s: float, identity: ProcessIdentity, address: str
) -> Membership | None:
    """Claims the host's place in a queued job on several hosts; None: it has none, or another task of the host has it.

    `address`: how other hosts reach this one.
    """
    with database.write() as connection:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()
        if row is None or row.status != Status.QUEUED or row.stop_requested or nodes_of(row.spec) == 1:
            return None
        now = database.time(connection)
        here = sa.and_(placements.c.job_id == job_id, placements.c.host == host)
        place = connection.execute(sa.select(placements).where(here)).one_or_none()
        if place is None or row.not_before > now:
            return None
        mine = sa.and_(
            members.c.job_id == job_id, members.c.generation == row.generation, members.c.member == place.member
        )
        # One whose supervisor died while it waited: its lease has run out, and it had started nothing.
        connection.execute(members.delete().where(mine, members.c.lease_until < now))
        if connection.execute(sa.select(members.c.member).where(mine)).first() is not None:
            return None
        token = secrets.token_hex(16)
        connection.execute(
            members.insert().values(
                job_id=job_id,
                generation=row.generation,
                member=place.member,
                token=token,
                host=host,
                gpus=place.gpus,
                lease_until=now + lease_s,
                claimed_at=now,
                boot_id=identity.boot_id,
                pid_namespace=identity.pid_namespace,
                supervisor_pid=identity.pid,
                supervisor_started=identity.started,
                address=address,
                draining=False,
            )
        )
        return Membership(job_id, row.generation, place.member, nodes_of(row.spec), host, token)


def hold_place(database: Database, membership: Membership, lease_s: float) -> bool:
    """Renews the lease of a place that waits. False: it is gone, or its job has started."""
    with database.write() as connection:
        renewed = members.update().where(_mine(membership), members.c.ended_at.is_(None), members.c.attempt.is_(None))
        return connection.execute(renewed.values(lease_until=database.now + lease_s)).rowcount == 1


def standing(database: Database, membership: Membership) -> Standing:
    """What has become of the place; only member 0 hears that all are ready."""
    with database.read() as connection:
        row = connection.execute(
            sa.select(members.c.attempt, members.c.ended_at).where(_mine(membership))
        ).one_or_none()
        if row is None or row.ended_at is not None:
            return Standing.RELEASED
        if row.attempt is not None:
            return Standing.STARTED
        if membership.member > 0:
            return Standing.WAITING
        ready = sa.and_(
            members.c.job_id == membership.job_id,
            members.c.generation == membership.generation,
            members.c.attempt.is_(None),
            members.c.lease_until >= database.now,
        )
        count = connection.execute(sa.select(sa.func.count()).select_from(members).where(ready)).scalar_one()
        return Standing.READY if count == membership.nodes else Standing.WAITING


def addresses(database: Database, membership: Membership) -> list[str]:
    """How each member's host is reached, by the member's number."""
    of_job = sa.and_(members.c.job_id == membership.job_id, members.c.generation == membership.generation)
    with database.read() as connection:
        return list(connection.execute(sa.select(members.c.address).where(of_job).order_by(members.c.member)).scalars())


def started_member(database: Database, membership: Membership) -> Claim | None:
    """What a member beyond 0 has once the job is claimed; None: the job has moved on already, or this host's lease ran
    out before it looked."""
    with database.read() as connection:
        in_time = members.c.lease_until >= database.now
        mine = connection.execute(sa.select(members).where(_mine(membership), in_time)).one_or_none()
        if mine is None or mine.attempt is None or mine.ended_at is not None:
            return None
        row = connection.execute(
            sa.select(jobs).where(jobs.c.id == membership.job_id, jobs.c.generation == mine.generation)
        ).one_or_none()
        first = sa.and_(members.c.job_id == mine.job_id, members.c.generation == mine.generation, members.c.member == 0)
        zero = connection.execute(sa.select(members.c.address, members.c.port).where(first)).one_or_none()
        if row is None or row.status != Status.RUNNING or zero is None:
            return None
        job = training_job(row, hosts_of(connection, [row.id]).get(row.id, []))
        return Claim(
            job,
            tuple(held_gpus(connection, row.id, membership.host)),
            committed_checkpoints(connection, row),
            row.restarts_used,
            (),
            membership,
            (zero.address, zero.port),
        )


def lose_member(database: Database, job_id: int, generation: int, member: int, token: str) -> None:
    """For a host that saw every process of a place gone: a waiting one is free again, a started one is lost."""
    with database.write() as connection:
        this = sa.and_(
            members.c.job_id == job_id,
            members.c.generation == generation,
            members.c.member == member,
            members.c.token == token,
            members.c.ended_at.is_(None),
        )
        connection.execute(members.delete().where(this, members.c.attempt.is_(None)))
        lost = {"outcome": "lost", "reason": "its worker was gone", "lease_until": 0.0}
        connection.execute(members.update().where(this).values(ended_at=database.now, **lost))


def _mine(membership: Membership) -> sa.ColumnElement[bool]:
    return sa.and_(
        members.c.job_id == membership.job_id,
        members.c.member == membership.member,
        members.c.token == membership.token,
    )
