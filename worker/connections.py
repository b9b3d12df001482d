"""What an attempt is connected to, opened in its task."""

from dataclasses import dataclass

import redis
import structlog

from shared.artifacts import ArtifactStore
from shared.database import Database
from shared.event_log import EventLog, nudge_channel

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Connections:
    """Opened in the task: a pool child that was forked with open connections hung on its first query."""

    database: Database
    lease_database: Database
    event_log: EventLog
    store: ArtifactStore
    events: redis.Redis

    def nudge(self, job_id: int, hosts: list[str]) -> None:
        """Has the supervisors of a job on these hosts look at the record now; without Redis their heartbeats do."""
        try:
            for host in hosts:
                self.events.publish(nudge_channel(host), str(job_id))
        except redis.RedisError as error:
            logger.debug("other hosts were not nudged", job_id=job_id, error=str(error))
