"""The work behind the Celery task `train(job_id)`: claims a placed job, runs one attempt of it, writes how it ended."""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence

import redis
import structlog

from shared.artifacts import ArtifactStore
from shared.attempt import LeaseLost
from shared.claims import Claim, ProcessIdentity, claim
from shared.counters import Counted, count_apart
from shared.database import Database, DatabaseUnavailable
from shared.event_log import EventLog
from shared.recovery import Recovery
from shared.settings import Settings
from worker.attempt import Attempt
from worker.connections import Connections
from worker.joining import Joining
from worker.member import run_member
from worker.process_tree import boot_id, boottime_s, pid_namespace, start_time
from worker.site import AttemptFailed
from worker.slots import threads_per_job
from worker.workspace import TRAINER

logger = structlog.get_logger(__name__)


def train(settings: Settings, job_id: int, trainer: Sequence[str] = TRAINER) -> None:
    """One attempt of a job that is placed on this host; returns at once when somebody else has it.

    `trainer`: the command of the attempt's first process. How an attempt ends is written to SQL; what can't be written
    there, the lease takes back.
    """
    with structlog.contextvars.bound_contextvars(job_id=job_id), _connections(settings) as connections:
        claimed_at = boottime_s()
        threads = threads_per_job(settings)
        try:
            identity = _identity()
            claimed = claim(connections.database, job_id, settings.host_name, settings.lease_s, threads, identity)
        except DatabaseUnavailable as error:
            logger.warning("job not claimed: SQL is away; it is poked again", error=str(error))
            return
        if claimed is None:
            joining = Joining(settings, connections.database, threads, identity)
            claimed, claimed_at = joining.run(job_id), joining.renewed_at
        if claimed is None:
            logger.info("nothing to claim: the job is taken, stopped or placed elsewhere")
            count_apart(connections.database, Counted.DOUBLED_MESSAGES)
            return
        logger.info("job claimed", attempt=claimed.job.attempt, generation=claimed.job.generation)
        begin = _run if claimed.membership is None or claimed.membership.member == 0 else run_member
        try:
            begin(settings, connections, claimed, claimed_at + settings.licence_s, trainer)
        except LeaseLost:
            logger.warning("lease lost: nothing more is written")
            count_apart(connections.database, Counted.FENCED_WRITES)
        except DatabaseUnavailable as error:
            logger.error("the attempt's end could not be written; its lease gives the job back", error=str(error))


def _run(
    settings: Settings, connections: Connections, claimed: Claim, licence_until: float, trainer: Sequence[str]
) -> None:
    """Raises LeaseLost, DatabaseUnavailable."""
    try:
        with Attempt(settings, connections, claimed, licence_until, trainer) as attempt:
            attempt.run()
    except AttemptFailed as error:
        logger.error("attempt lost", error=str(error))
        # Every process of it is gone, so nobody has to wait for the lease.
        Recovery(connections.database).lose(
            claimed.job.job_id, str(error), only_expired=False, generation=claimed.job.generation
        )


@contextlib.contextmanager
def _connections(settings: Settings) -> Iterator[Connections]:
    database, lease_database = _databases(settings.database_url.get_secret_value())
    client = redis.Redis.from_url(settings.events_redis_url, socket_timeout=5, socket_connect_timeout=3)
    event_log = EventLog(client, kept_per_job=settings.events_kept_per_job, kept_s=settings.events_kept_s)
    try:
        yield Connections(database, lease_database, event_log, ArtifactStore(settings.artifacts_url), client)
    finally:
        client.close()
        database.close()
        lease_database.close()


@functools.cache
def _databases(url: str) -> tuple[Database, Database]:
    """Kept by the process, closed between its jobs: an engine remembers the SQL it has compiled, and a claim by a new
    one took 8.3 ms instead of 3.0 (2026-11-24). First called in the task, never before a fork."""
    return Database(url, connections=4), Database(url, connections=1)


def _identity() -> ProcessIdentity:
    pid = os.getpid()
    return ProcessIdentity(boot_id(), pid_namespace(), pid, start_time(pid) or 0)
