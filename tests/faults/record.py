"""What the checker judges: everything that SQL, Redis and the artifact store hold about each job, read once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
import sqlalchemy as sa

from epochcast.events import BEFORE_ALL
from shared.artifacts import ArtifactStore
from shared.database import Database
from shared.event_log import Entry, entry_of_row, log_key
from shared.queries import Queries
from shared.settings import Settings
from shared.tables import artifacts, attempts, event_chunks, gpus, jobs, members, metric_points, placements
from shared.tables import models as models_table
from shared.tables import transition_events as transitions

Row = Any


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job. `stream` and `stream_ids`: what Redis has, as it is; `archive`: what SQL has of the same story."""

    row: Row
    attempts: list[Row]
    members: list[Row]
    transitions: list[Row]
    chunks: list[Row]
    artifacts: list[Row]
    points: list[Row]
    held: int
    """Placements and GPUs that are reserved for it."""
    stream_ids: list[str]
    stream: list[Entry]
    archive: list[Entry]

    @property
    def job_id(self) -> int:
        return int(self.row.id)

    @property
    def story(self) -> list[Entry]:
        """Stream and archive as the one log that readers get from both; the stream's entries know of gaps."""
        known = {entry.id: entry for entry in self.archive} | {entry.id: entry for entry in self.stream}
        return [known[identifier] for identifier in sorted(known)]

    def began(self, generation: int) -> float | None:
        """When the record moved on from every earlier generation than this: its first event's moment."""
        moments = [row.created_at for row in self.transitions if row.generation >= generation]
        return min(moments, default=None)


class Reader:
    """Reads the records of one platform. Used while nothing is broken: it needs SQL and Redis."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @contextmanager
    def _opened(self) -> Iterator[tuple[Database, redis.Redis]]:
        database = Database(self._settings.database_url.get_secret_value())
        client = redis.Redis.from_url(self._settings.events_redis_url, socket_timeout=10)
        try:
            yield database, client
        finally:
            client.close()
            database.close()

    def job_ids(self) -> list[int]:
        with self._opened() as (database, _), database.read() as connection:
            return list(connection.execute(sa.select(jobs.c.id).order_by(jobs.c.id)).scalars())

    def jobs(self, job_ids: list[int] | None = None) -> list[JobRecord]:
        """All jobs, or some."""
        wanted = self.job_ids() if job_ids is None else job_ids
        with self._opened() as (database, client):
            return [self._job(database, client, job_id) for job_id in wanted]

    @staticmethod
    def _job(database: Database, client: redis.Redis, job_id: int) -> JobRecord:
        def rows(table: sa.Table, *order: str) -> list[Row]:
            query = sa.select(table).where(table.c.job_id == job_id).order_by(*(table.c[name] for name in order))
            return list(connection.execute(query))

        stream: Any = client.xrange(log_key(job_id))
        with database.read() as connection:
            record = JobRecord(
                row=connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one(),
                attempts=rows(attempts, "number"),
                members=rows(members, "generation", "member"),
                transitions=rows(transitions, "generation", "seq"),
                chunks=rows(event_chunks, "generation", "first_seq"),
                artifacts=rows(artifacts, "id"),
                points=rows(metric_points, "epoch", "step"),
                held=len(rows(placements)) + len(rows(gpus)),
                stream_ids=[identifier.decode() for identifier, _ in stream],
                stream=[entry_of_row(row) for row in stream],
                archive=[],
            )
        record.archive.extend(_archive(Queries(database), job_id))
        return record

    def weights(self, job_id: int) -> bytes | None:
        """The tensors of the job's model, as safetensors keeps them; None: it has none."""
        with self._opened() as (database, _), database.read() as connection:
            query = sa.select(artifacts.c.key).join(models_table, models_table.c.artifact_id == artifacts.c.id)
            newest = query.where(models_table.c.job_id == job_id).order_by(models_table.c.id.desc()).limit(1)
            key = connection.execute(newest).scalar_one_or_none()
        if key is None:
            return None
        content = b"".join(ArtifactStore(self._settings.artifacts_url).stream(key))
        # Behind the header, whose metadata may name attempt and host.
        return content[8 + int.from_bytes(content[:8], "little") :]


def _archive(queries: Queries, job_id: int) -> Iterator[Entry]:
    cursor = BEFORE_ALL
    while found := queries.archived(job_id, cursor, 1000):
        yield from found
        cursor = found[-1].id
