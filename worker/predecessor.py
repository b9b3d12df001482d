"""What an earlier life of this host left: its process trees are ended, and its jobs given back at once."""

import os
import shutil
import time
from pathlib import Path

import sqlalchemy as sa
import structlog

from epochcast.jobs import Status
from shared.database import Database
from shared.recovery import Recovery
from shared.tables import attempts, jobs
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
        if attempt.boot_id != boot_id() or attempt.pid_namespace != pid_namespace():
            continue
        processes = [
            (attempt.supervisor_pid, attempt.supervisor_started),
            (attempt.launcher_pid, attempt.launcher_started),
        ]
        if all(_end(pid, started) for pid, started in processes if pid is not None):
            logger.warning("job given back: its worker was gone", job_id=attempt.job_id, attempt=attempt.number)
            Recovery(database).lose(
                attempt.job_id, "its worker was gone", only_expired=False, generation=attempt.generation
            )
        else:
            all_gone = False
    if all_gone:
        shutil.rmtree(jobs_folder(work_dir), ignore_errors=True)


def end_leftovers(database: Database, job_id: int, host: str, generation: int) -> bool:
    """Before an attempt starts: ends what earlier ones of its job left on this host. False: something won't die."""
    with database.read() as connection:
        earlier = connection.execute(
            sa.select(attempts).where(
                attempts.c.job_id == job_id, attempts.c.host == host, attempts.c.generation < generation
            )
        ).all()
    return all(
        _end(attempt.launcher_pid, attempt.launcher_started)
        for attempt in earlier
        if attempt.launcher_pid is not None
        and attempt.boot_id == boot_id()
        and attempt.pid_namespace == pid_namespace()
    )


def _end(pid: int, started: int) -> bool:
    """Ends one process tree of an earlier life and waits until it is gone."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while is_alive(pid, started):
        if pid == os.getpid() or time.monotonic() > deadline:
            return False
        kill_tree(pid, started)
        time.sleep(0.02)
    return True
