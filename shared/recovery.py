"""Taking back what nobody owns any more: jobs with an expired lease or a dead worker, unclaimed placements."""

from typing import Any

import sqlalchemy as sa

from epochcast.jobs import JobError, Status
from shared.database import Database
from shared.rows import progress_message
from shared.tables import avoided_hosts, jobs, placements
from shared.transitions import (
    apply,
    end_attempt,
    error_message,
    fence_of,
    release_from,
    release_resources,
    requeued,
    stop_queued,
)

LOSSES_ALLOWED = 3


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
        self, job_id: int, reason: str, *, only_expired: bool, generation: int | None = None, charge: bool = True
    ) -> bool:
        """Ends the attempt of a running job whose supervisor is gone. Returns whether it was this call that did it.

        `only_expired=False` is for a host that saw every process of the attempt gone; it names the `generation`.
        """
        with self._database.write() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()
            if row is None or row.status != Status.RUNNING or (generation is not None and row.generation != generation):
                return False
            now = self._database.time(connection)
            expired = jobs.c.lease_until < self._database.now if only_expired else None
            values = requeued(row, now) | {"losses": row.losses + int(charge)}
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
            release_resources(connection, job_id)
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
        """Gives an unclaimed placement back and prefers other hosts for `avoid_s`. No event: the job stays queued."""
        with self._database.write() as connection:
            queued = sa.and_(jobs.c.id == job_id, jobs.c.generation == generation, jobs.c.status == Status.QUEUED)
            if connection.execute(sa.select(jobs.c.id).where(queued).with_for_update()).one_or_none() is None:
                return False
            mine = sa.and_(placements.c.job_id == job_id, placements.c.host == host)
            if connection.execute(sa.select(placements.c.job_id).where(mine)).first() is None:
                return False
            release_resources(connection, job_id)
            until = self._database.time(connection) + avoid_s
            this = sa.and_(avoided_hosts.c.job_id == job_id, avoided_hosts.c.host == host)
            if connection.execute(avoided_hosts.update().where(this).values(until=until)).rowcount == 0:
                connection.execute(avoided_hosts.insert().values(job_id=job_id, host=host, until=until))
            return True

    def release_host(self, host: str) -> list[int]:
        """A host leaves in order: what was placed there and not claimed yet goes elsewhere at once."""
        with self._database.write() as connection:
            here = sa.exists().where(placements.c.job_id == jobs.c.id, placements.c.host == host)
            # Locked, and so judged again after a claim that was under way: what it has claimed stays.
            waiting = connection.execute(
                sa.select(jobs.c.id).where(jobs.c.status == Status.QUEUED, here).order_by(jobs.c.id).with_for_update()
            ).scalars()
            return [job_id for job_id in list(waiting) if release_from(connection, job_id, host)]
