"""What a submission would do, without storing anything: the answer to a dry run."""

from types import SimpleNamespace
from typing import Any

from epochcast.jobs import MAX_JOB_ID, TrainingJobSpec
from shared.database import Database
from shared.placement import free_hosts
from shared.seats import choose, why_it_waits
from shared.store import queue_position


def plan(database: Database, spec: TrainingJobSpec) -> dict[str, Any]:
    """The resolved spec, the hosts that could take the job (or a member of it) now, its place in the queue, and why it
    would wait."""
    with database.read() as connection:
        now = database.time(connection)
        free = free_hosts(connection, now)
        newest = SimpleNamespace(priority=spec.priority, queued_at=now, id=MAX_JOB_ID)
        position = queue_position(connection, newest)
    alone = spec.resources.model_copy(update={"nodes": 1})
    fitting = [host.name for host in free if choose(alone, [host], frozenset(), resumes=False)]
    enough = len(fitting) >= spec.resources.nodes
    return {
        "spec": spec.model_dump(mode="json"),
        "hosts_that_fit": fitting,
        "queue_position": position,
        "pending_reason": None if enough else why_it_waits(spec.resources, free),
    }
