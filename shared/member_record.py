"""What a member writes of itself: its lease, its launcher, what its ranks say, how it ended. Fenced by its own row.

The row ends in the same transaction in which the job moves on (`shared/gang.py`), so an open row is the right to write.
"""

import sqlalchemy as sa

from epochcast.jobs import JobError
from shared.attempt import Heartbeat, LeaseLost
from shared.claims import Claim, Membership
from shared.database import Database
from shared.tables import gpus, jobs, member_messages, members

# Rows that member 0 has not taken yet; beyond them a member waits, and drops its oldest log lines.
UNTAKEN = 4


class MemberRecord:
    """Each write raises LeaseLost once the row has ended or is another's, DatabaseUnavailable in an outage."""

    def __init__(self, database: Database, claim: Claim, membership: Membership) -> None:
        self.database = database
        self._job_id = claim.job.job_id
        self._generation = claim.job.generation
        self._membership = membership

    def heartbeat(self, lease_s: float) -> Heartbeat:
        """Renews the lease. One that has run out is lost for good (others may count on that), and so is this member's
        when the job's own has: then nobody leads the attempt any more."""
        with self.database.write() as connection:
            row = connection.execute(
                members.update()
                .where(self._own, members.c.lease_until >= self.database.now)
                .values(lease_until=self.database.now + lease_s)
                .returning(members.c.ordered)
            ).one_or_none()
            led = sa.and_(
                jobs.c.id == self._job_id,
                jobs.c.generation == self._generation,
                jobs.c.lease_until >= self.database.now,
            )
            stop_requested = connection.execute(sa.select(jobs.c.stop_requested).where(led)).scalar_one_or_none()
            if row is None or stop_requested is None:
                raise self._lost()
            return Heartbeat(bool(stop_requested), row.ordered)

    def record_launcher(self, pid: int, started: int) -> None:
        """Which process holds the kill switch; `started`: its start time in clock ticks since boot."""
        self._write(launcher_pid=pid, launcher_started=started)

    def drain(self) -> None:
        """This host's worker shuts down: the attempt ends for all."""
        self._write(draining=True)

    def tell(self, seq: int, payload: bytes) -> bool:
        """Sends member 0 what this host's ranks said. False: it has not taken enough of what was said before.

        `seq` counts up from 1. Sent again after an outage that left open whether it arrived, it arrives once.
        """
        with self.database.write() as connection:
            # The job's row first, as whoever ends the attempt does: the message refers to it.
            connection.execute(sa.select(jobs.c.id).where(jobs.c.id == self._job_id).with_for_update(key_share=True))
            if connection.execute(sa.select(members.c.member).where(self._own).with_for_update()).first() is None:
                raise self._lost()
            mine = sa.and_(
                member_messages.c.job_id == self._job_id,
                member_messages.c.generation == self._generation,
                member_messages.c.member == self._membership.member,
            )
            waiting = list(connection.execute(sa.select(member_messages.c.seq).where(mine)).scalars())
            if seq in waiting:
                return True
            if len(waiting) >= UNTAKEN:
                return False
            connection.execute(
                member_messages.insert().values(
                    job_id=self._job_id,
                    generation=self._generation,
                    member=self._membership.member,
                    seq=seq,
                    payload=payload,
                    created_at=self.database.now,
                )
            )
            return True

    def fail(self, error: JobError, age_s: float) -> None:
        """The first failure of this host's ranks, `age_s` seconds ago; a later one changes nothing."""
        with self.database.write() as connection:
            if connection.execute(sa.select(members.c.member).where(self._own).with_for_update()).first() is None:
                raise self._lost()
            dumped = error.model_dump(mode="json")
            first = members.update().where(self._own, members.c.failed_at.is_(None))
            connection.execute(first.values(error=dumped, failed_at=self.database.now - age_s))

    def end(self, outcome: str, reason: str | None, exit_code: int | None, *, quarantine: bool = False) -> None:
        """The last process is gone: gives the lease back. `quarantine`: its tree would not die."""
        with self.database.write() as connection:
            ended = {"outcome": outcome, "reason": reason, "exit_code": exit_code, "lease_until": 0.0}
            own = members.update().where(self._own).values(ended_at=self.database.now, **ended)
            if connection.execute(own).rowcount == 0:
                raise self._lost()
            if quarantine:
                held = sa.and_(gpus.c.job_id == self._job_id, gpus.c.host == self._membership.host)
                connection.execute(gpus.update().where(held).values(quarantined=True))

    @property
    def _own(self) -> sa.ColumnElement[bool]:
        return sa.and_(
            members.c.job_id == self._job_id,
            members.c.generation == self._generation,
            members.c.member == self._membership.member,
            members.c.token == self._membership.token,
            members.c.ended_at.is_(None),
        )

    def _write(self, **values: object) -> None:
        with self.database.write() as connection:
            if connection.execute(members.update().where(self._own).values(**values)).rowcount == 0:
                raise self._lost()

    def _lost(self) -> LeaseLost:
        return LeaseLost(f"member {self._membership.member} of job {self._job_id} generation {self._generation}")
