"""What an earlier life of this host left: its process trees are ended, and its jobs given back at once."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog

from epochcast.jobs import Status, TrainingJob
from shared.database import Database
from shared.membership import lose_member
from shared.recovery import Recovery
from shared.tables import attempts, jobs, members
from worker.process_tree import boot_id, is_alive, kill_tree, pid_namespace
from worker.workspace import jobs_folder

logger = structlog.get_logger(__name__)

GONE_WITHIN_S = 10.0


def release_predecessors(database: Database, host: str, work_dir: Path) -> None:
    """Ends the trees of earlier attempts on this host, releases their jobs and removes their folders.

    Only attempts of this boot and PID namespace whose processes were seen gone are released; all others wait out
    their lease, because nobody here can know that they don't compute.
    """
    with database.read() as connection:
        left = connection.execute(
            sa.select(attempts)
            .join(jobs, sa.and_(jobs.c.id == attempts.c.job_id, jobs.c.generation == attempts.c.generation))
            .where(attempts.c.host == host, attempts.c.ended_at.is_(None), jobs.c.status == Status.RUNNING)
        ).all()
    all_gone = True
    for attempt in left:
        if not _is_ours(attempt):
            continue
        if _end_both(attempt):
            logger.warning("job given back: its worker was gone", job_id=attempt.job_id, attempt=attempt.number)
            Recovery(database).lose(
                attempt.job_id, "its worker was gone", only_expired=False, generation=attempt.generation
            )
        else:
            all_gone = False
    all_gone &= _release_members(database, host)
    all_gone &= _end_lost(database, host)
    if all_gone:
        shutil.rmtree(jobs_folder(work_dir), ignore_errors=True)


def _release_members(database: Database, host: str) -> bool:
    """The same for this host's places in jobs on several. Returns whether all processes are gone."""
    with database.read() as connection:
        left = connection.execute(sa.select(members).where(members.c.host == host, members.c.ended_at.is_(None))).all()
    all_gone = True
    for member in left:
        if not _is_ours(member) or (member.member == 0 and member.attempt is not None):
            continue  # member 0's attempt is the job's own
        if _end_both(member):
            logger.warning("place given back: its worker was gone", job_id=member.job_id, member=member.member)
            lose_member(database, member.job_id, member.generation, member.member, member.token)
        else:
            all_gone = False
    return all_gone


def _end_lost(database: Database, host: str) -> bool:
    """What others have taken back meanwhile: such an attempt was lost because nobody could see whether it had ended."""
    left: list[Any] = []
    with database.read() as connection:
        for table in (attempts, members):
            lost = sa.and_(table.c.host == host, table.c.outcome == "lost", table.c.launcher_pid.is_not(None))
            left += connection.execute(sa.select(table).where(lost, table.c.boot_id == boot_id())).all()
    ended = [_end(row.launcher_pid, row.launcher_started) for row in left if _is_ours(row)]
    return all(ended)


def end_leftovers(database: Database, job: TrainingJob, host: str) -> bool:
    """Before an attempt starts: ends what earlier ones of its job left on this host. False: something won't die."""
    tables = [attempts, members] if job.spec.resources.nodes > 1 else [attempts]
    with database.read() as connection:
        earlier = [
            row
            for table in tables
            for row in connection.execute(
                sa.select(table).where(
                    table.c.job_id == job.job_id, table.c.host == host, table.c.generation < job.generation
                )
            )
        ]
    return all(
        _end(attempt.launcher_pid, attempt.launcher_started)
        for attempt in earlier
        if attempt.launcher_pid is not None and _is_ours(attempt)
    )


def _is_ours(row: Any) -> bool:
    """Whether its processes, if they live, can be seen from here."""
    return bool(row.boot_id == boot_id() and row.pid_namespace == pid_namespace())


def _end_both(row: Any) -> bool:
    """Ends a supervisor and its launcher's tree. Returns whether both are gone."""
    processes = [(row.supervisor_pid, row.supervisor_started), (row.launcher_pid, row.launcher_started)]
    return all(_end(pid, started) for pid, started in processes if pid is not None)


def _end(pid: int, started: int) -> bool:
    """Ends one process tree of an earlier life and waits until it is gone."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while is_alive(pid, started):
        if pid == os.getpid() or time.monotonic() > deadline:
            return False
        kill_tree(pid, started)
        time.sleep(0.02)
    return True
