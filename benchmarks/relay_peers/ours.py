"""What the gateway needs to have jobs to relay: running ones in SQL, each with an event log, and a token."""

import secrets
import time
from pathlib import Path

import sqlalchemy as sa

from epochcast.events import EventId, encode
from epochcast.jobs import Status, TrainingJobSpec
from shared import database, tokens
from shared.database import Database
from shared.embedded import RedisServer
from shared.event_log import Entry, EventLog
from shared.rows import progress_message
from shared.store import Store
from shared.tables import jobs

LAST = EventId(2, 1)
"""The newest event of each job, after which the publisher goes on."""


def prepare(folder: Path, redis_server: RedisServer, count: int) -> tuple[dict[str, str], str]:
    """Stores jobs 1 to `count`, running; the gateway's environment, and a token that sees them."""
    url = f"sqlite:///{folder}/epochcast.db"
    database.upgrade(url)
    record = Database(url)
    store = Store(record)
    spec = TrainingJobSpec(recipe="image-classifier", total_epochs=100, name="digits")
    for _ in range(count):
        store.create(spec, "alice")
    with record.write() as connection:
        running = {"status": Status.RUNNING, "current_epoch": 45, "progress": 0.45, "generation": LAST.generation}
        connection.execute(sa.update(jobs).values(**running, lease_until=time.time() + 10**6))
    _publish(store, redis_server, count)
    record.close()
    secret = secrets.token_hex(32)
    settings = {
        "EPOCHCAST_DATABASE_URL": url,
        "EPOCHCAST_BROKER_URL": redis_server.url,
        "EPOCHCAST_ARTIFACTS_URL": (folder / "artifacts").as_uri(),
        "EPOCHCAST_WORK_DIR": str(folder / "work"),
        "EPOCHCAST_SECRET": secret,
    }
    return settings, tokens.create("alice", ["jobs:read"], days=1, secret=secret)


def _publish(store: Store, redis_server: RedisServer, count: int) -> None:
    with redis_server.client() as client:
        log = EventLog(client)
        for job_id in range(1, count + 1):
            job = store.get(job_id).model_copy(update={"last_event_id": str(LAST)})
            message = encode(progress_message(job, LAST))
            entry = Entry(LAST, EventId(1, 1), "progress", "running", "alice", message)
            log.append(job_id, entry, snapshot=job.model_dump_json().encode(), current=message)
