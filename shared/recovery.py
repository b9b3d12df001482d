"""Taking back what nobody owns any more: jobs with an expired lease or a dead worker, unclaimed placements."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from epochcast.jobs import JobError, Status
from shared.counters import Counted, count
from shared.database import Database
from shared.gang import end_members, live_members, order_members
from shared.rows import nodes_of, progress_message
from shared.tables import attempts, avoided_hosts, gpus, jobs, members, placements
from shared.transitions import (
    apply,
    end_attempt,
    error_message,
    fence_of,
    release_resources,
    requeued,
    stop_queued,
)

LOSSES_ALLOWED = 3
# For so long a job prefers other hosts than one that lost it, or didn't claim it.
AVOID_S = 600.0


class Recovery:
    """The dispatcher's side of the record. Methods raise DatabaseUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reap(self, limit: int = 100) -> list[int]:
        """Takes back running jobs whose lease ran out: requeued, stopped if that was asked, or failed as `lost`."""
        with self._database.read() as connection:
            expired = connection.execute(
                sa.select(jobs.c.id)
                .where(jobs.c.status == Status.RUNNING, jobs.c.lease_until < self._database.now)
                .limit(limit)
            ).scalars()
            candidates = list(expired)
        return [job_id for job_id in candidates if self.lose(job_id, "lease ran out", only_expired=True)]

    def lose(
        self,
        job_id: int,
        reason: str,
        *,
        only_expired: bool,
        generation: int | None = None,
        stuck_on: str | None = None,
    ) -> bool:
        """Ends the attempt of a running job whose supervisor is gone. Returns whether it was this call that did it.

        `only_expired=False` is for a host that saw every process of the attempt gone; it names the `generation`. While
        members on other hosts live, the job is only let go: they are told to end, and the reaper takes it after them.
        `stuck_on`: a host on which its tree would not die. The job keeps its age, and prefers other hosts for a while:
        on one that is broken (its disk is full) three attempts would be lost within seconds.
        """
        with self._database.write() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()
            if row is None or row.status != Status.RUNNING or (generation is not None and row.generation != generation):
                return False
            now = self._database.time(connection)
            if only_expired and row.lease_until >= now:
                return False
            if stuck_on is not None:
                here = sa.and_(gpus.c.job_id == job_id, gpus.c.host == stuck_on)
                connection.execute(gpus.update().where(here).values(quarantined=True))
            if nodes_of(row.spec) > 1 and live_members(connection, job_id, row.generation, now):
                if not only_expired:
                    connection.execute(jobs.update().where(fence_of(row).condition).values(lease_until=now))
                order_members(connection, job_id, row.generation, "kill")
                return False
            expired = jobs.c.lease_until < self._database.now if only_expired else None
            values = requeued(row, now) | {"queued_at": row.queued_at, "losses": row.losses + 1}
            make_event: Any = progress_message
            if row.stop_requested:
                values |= {"status": Status.STOPPED, "finished_at": now}
            elif values["losses"] >= LOSSES_ALLOWED:
                error = JobError(
                    type="lost",
                    message=f"lost {LOSSES_ALLOWED} times in a row without a new checkpoint",
                    detail=f"the last attempt's host stopped answering ({reason})",
                    epoch=row.current_epoch,
                )
                values |= {"status": Status.FAILED, "error": error.model_dump(mode="json"), "finished_at": now}
                make_event = error_message
            if apply(connection, fence_of(row), values, now, extra=expired, event=make_event) is None:
                return False
            end_attempt(connection, job_id, row.generation, now, "lost", reason)
            count(connection, Counted.REAPED)
            if nodes_of(row.spec) > 1:
                end_members(connection, job_id, row.generation, now, "lost")
            _avoid(connection, job_id, _hosts_that_lost(connection, job_id, row.generation), now + AVOID_S)
            release_resources(connection, job_id, began=_has_begun(connection, job_id, row.generation))
            return True

    def stop_requested_queued(self) -> list[int]:
        """Finishes queued jobs that carry a stop request (asked while they ran, before their host was lost)."""
        asked = sa.select(jobs).where(jobs.c.status == Status.QUEUED, jobs.c.stop_requested)
        with self._database.read() as connection:
            if connection.execute(asked).first() is None:
                return []
        with self._database.write() as connection:
            now = self._database.time(connection)
            rows = connection.execute(asked).all()
            return [row.id for row in rows if stop_queued(connection, row, now)]

    def release_placement(self, job_id: int, generation: int, host: str, avoid_s: float) -> bool:
        """Gives a placement that `host` did not claim back and prefers other hosts for `avoid_s`. No event: the job
        stays queued. Of several hosts all are released, and those that claimed their place are not avoided."""
        with self._database.write() as connection:
            queued = sa.and_(jobs.c.id == job_id, jobs.c.generation == generation, jobs.c.status == Status.QUEUED)
            if connection.execute(sa.select(jobs.c.id).where(queued).with_for_update()).one_or_none() is None:
                return False
            claimed = waits_for_others(self._database.now)
            unclaimed = sa.select(placements.c.host).where(placements.c.job_id == job_id, sa.not_(claimed))
            absent = list(connection.execute(unclaimed).scalars())
            if host not in absent:
                return False
            release_resources(connection, job_id)
            _avoid(connection, job_id, absent, self._database.time(connection) + avoid_s)
            return True

    def release_host(self, host: str) -> list[int]:
        """A host leaves in order: jobs placed there and not claimed yet go elsewhere at once, with all their hosts."""
        with self._database.write() as connection:
            here = sa.exists().where(placements.c.job_id == jobs.c.id, placements.c.host == host)
            # Locked, and so judged again after a claim that was under way: what it has claimed stays.
            waiting = connection.execute(
                sa.select(jobs.c.id).where(jobs.c.status == Status.QUEUED, here).order_by(jobs.c.id).with_for_update()
            ).scalars()
            return [job_id for job_id in list(waiting) if self._release_all(connection, job_id, host)]

    @staticmethod
    def _release_all(connection: sa.Connection, job_id: int, host: str) -> bool:
        """Returns whether the job was placed there still."""
        mine = sa.and_(placements.c.job_id == job_id, placements.c.host == host)
        if connection.execute(sa.select(placements.c.job_id).where(mine)).first() is None:
            return False
        release_resources(connection, job_id)
        return True


def _avoid(connection: sa.Connection, job_id: int, names: Iterable[str], until: float) -> None:
    """The caller has locked the job's row."""
    past = sa.and_(avoided_hosts.c.job_id == job_id, avoided_hosts.c.until < until - AVOID_S)
    connection.execute(avoided_hosts.delete().where(past))
    for name in names:
        this = sa.and_(avoided_hosts.c.job_id == job_id, avoided_hosts.c.host == name)
        if connection.execute(avoided_hosts.update().where(this).values(until=until)).rowcount == 0:
            connection.execute(avoided_hosts.insert().values(job_id=job_id, host=name, until=until))


def _hosts_that_lost(connection: sa.Connection, job_id: int, generation: int) -> list[str]:
    """Of several hosts those whose own part was lost, else the one that led the attempt."""
    of_attempt = sa.and_(members.c.job_id == job_id, members.c.generation == generation)
    lost = sa.select(members.c.host).where(of_attempt, members.c.member > 0, members.c.outcome == "lost")
    led = sa.select(attempts.c.host).where(attempts.c.job_id == job_id, attempts.c.generation == generation)
    return list(connection.execute(lost).scalars()) or list(connection.execute(led).scalars())


def _has_begun(connection: sa.Connection, job_id: int, generation: int) -> bool:
    """Whether anything of the attempt was started on its GPUs, as far as its hosts could tell."""
    started = [
        sa.exists().where(table.c.job_id == job_id, table.c.generation == generation, table.c.launcher_pid.is_not(None))
        for table in (attempts, members)
    ]
    return bool(connection.execute(sa.select(sa.or_(*started))).scalar_one())


def waits_for_others(now: sa.ColumnElement[float]) -> sa.ColumnElement[bool]:
    """Whether a placement's host has claimed its place and waits for the job's other hosts."""
    mine = sa.and_(members.c.job_id == placements.c.job_id, members.c.member == placements.c.member)
    return sa.exists().where(mine, members.c.attempt.is_(None), members.c.lease_until >= now)
