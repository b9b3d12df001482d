"""What a submission would do, without storing anything: the answer to a dry run."""

from types import SimpleNamespace
from typing import Any

from epochcast.jobs import MAX_JOB_ID, TrainingJobSpec, utc_seconds
from shared.database import Database
from shared.deciding import Pass
from shared.queue import Wanted
from shared.rows import moment
from shared.seats import choose
from shared.store import queue_position
from shared.vacancies import capacity, free_hosts
from shared.waiting_reason import why_it_waits


def plan(
    database: Database,
    spec: TrainingJobSpec,
    owner: str | None = None,
    running_per_owner: int | None = None,
    reserve_after_s: float = 300.0,
) -> dict[str, Any]:
    """The resolved spec, the hosts that could take the job (or a member of it) now, its place in the queue, why it
    would wait, and when it would start (None: nobody knows)."""
    with database.read() as connection:
        now = database.time(connection)
        free = free_hosts(connection, now)
        newest = SimpleNamespace(priority=spec.priority, queued_at=now, id=MAX_JOB_ID)
        position = queue_position(connection, newest)
        alone = spec.resources.model_copy(update={"nodes": 1})
        fitting = [host.name for host in free if choose(alone, [host])]
        reason = None
        if len(fitting) < spec.resources.nodes:
            reason = why_it_waits(spec.resources, free, capacity(connection, {host.name for host in free}))
        # Who waits already goes first.
        ahead = Pass(connection, now, running_per_owner, reserve_after_s, forecasts=False)
        ahead.decide(MAX_JOB_ID)
        starts_at = ahead.start_behind(Wanted(spec.resources, spec.max_runtime_s), spec.priority)
        if owner is not None and (over := ahead.over_limit(owner)) is not None:
            reason, starts_at = over, None
    return {
        "spec": spec.model_dump(mode="json"),
        "hosts_that_fit": fitting,
        "queue_position": position,
        "pending_reason": reason,
        "expected_start_at": None if starts_at is None else utc_seconds(moment(starts_at)),
    }
