"""What tests of jobs on several hosts have in common: placed jobs, claimed places, a started attempt."""

import dataclasses

import sqlalchemy as sa

from shared.claims import Claim, Membership, ProcessIdentity, claim
from shared.database import Database
from shared.member_record import MemberRecord
from shared.membership import claim_member, started_member
from shared.placement import place
from shared.store import Store
from shared.tables import members, placements
from tests.shared.records import add_host, host_state, spec

IDENTITY = ProcessIdentity("boot", "namespace", 1, 1)
MASTER = ("127.0.0.1", 20_001)


def add_hosts(database: Database, count: int, slots: int = 1) -> list[str]:
    names = [f"host-{number}" for number in range(count)]
    for name in names:
        add_host(database, host_state(name, slots=slots))
    return names


def create_gang(store: Store, nodes: int = 2, **fields: object) -> int:
    return store.create(spec(nodes=nodes, **fields), "alice")[0].job_id  # type: ignore[arg-type]


def placed_hosts(database: Database, job_id: int) -> list[str]:
    """By member."""
    with database.read() as connection:
        query = sa.select(placements.c.host).where(placements.c.job_id == job_id).order_by(placements.c.member)
        return list(connection.execute(query).scalars())


def join(database: Database, job_id: int, host: str, lease_s: float = 120) -> Membership:
    membership = claim_member(database, job_id, host, lease_s, IDENTITY, "127.0.0.1")
    assert membership is not None
    return membership


def join_all(database: Database, job_id: int) -> list[Membership]:
    place(database)
    return [join(database, job_id, host) for host in placed_hosts(database, job_id)]


def start(database: Database, job_id: int, lease_s: float = 120) -> tuple[Claim, list[MemberRecord]]:
    """A started attempt: member 0's claim, and the records of the members beyond it."""
    zero, *others = join_all(database, job_id)
    claimed = claim(database, job_id, zero.host, lease_s, 1, IDENTITY, zero, MASTER)
    assert claimed is not None
    return claimed, [record_of_member(database, membership) for membership in others]


def record_of_member(database: Database, membership: Membership) -> MemberRecord:
    claimed = started_member(database, membership)
    assert claimed is not None
    return MemberRecord(database, claimed, membership)


def expire_member(database: Database, job_id: int, member: int) -> None:
    with database.write() as connection:
        this = sa.and_(members.c.job_id == job_id, members.c.member == member, members.c.ended_at.is_(None))
        connection.execute(sa.update(members).where(this).values(lease_until=1.0))


def with_token(membership: Membership, token: str) -> Membership:
    return dataclasses.replace(membership, token=token)
