"""The queue as a placing pass reads it: who waits, in order, and what each needs."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
import sqlalchemy as sa
from pydantic import ValidationError

from epochcast.jobs import Resources, Status
from shared.seats import needed_bytes
from shared.tables import jobs, placements

# Beyond it nobody is looked at: a queue that takes longer to read than a pass may last.
LONGEST = 200_000


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What one attempt needs. `bound_s`: it runs no longer than that; None: nobody knows."""

    resources: Resources
    bound_s: float | None

    @property
    def room(self) -> tuple[int, int, int]:
        """Equal for jobs that fit equally well: hosts, GPUs on each, bytes on each of those."""
        return self.resources.nodes, self.resources.gpus, needed_bytes(self.resources)


@dataclass(frozen=True, slots=True)
class Refused:
    """A spec that no pass can judge, and in words why."""

    complaint: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued job without a place."""

    id: int
    generation: int
    owner: str
    priority: int
    queued_at: float
    resumes: bool
    pending_reason: str | None
    expected_start_at: float | None
    wanted: Wanted | Refused


def complaint_of(error: ValidationError, *within: str) -> str:
    """Names the fields of a spec that are refused; `within`: where in the spec the one that was read stands."""
    fields = sorted({".".join(map(str, (*within, *problem["loc"]))) for problem in error.errors()})
    return f"its spec is refused ({', '.join(fields)})"


def waiting(connection: sa.Connection, now: float, limit: int = LONGEST) -> list[Waiting]:
    """Best first: priority, then age."""
    # Of the spec only what placing needs: ten thousand whole ones would take longer to read than to place.
    resources = jobs.c.spec["resources"].as_string().label("resources")
    bound = jobs.c.spec["max_runtime_s"].as_string().label("bound")
    columns = (
        jobs.c.id,
        jobs.c.generation,
        jobs.c.owner,
        jobs.c.priority,
        jobs.c.queued_at,
        jobs.c.checkpoint_id,
        jobs.c.pending_reason,
        jobs.c.expected_start_at,
        resources,
        bound,
    )
    rows = connection.execute(
        sa.select(*columns)
        .where(_waits(now))
        .order_by(jobs.c.priority.desc(), jobs.c.queued_at, jobs.c.id)
        .limit(limit)
    )
    return [
        Waiting(
            job_id, generation, owner, priority, queued_at, checkpoint is not None, reason, start_at, _wanted(*spec)
        )
        for job_id, generation, owner, priority, queued_at, checkpoint, reason, start_at, *spec in rows
    ]


def count_waiting(connection: sa.Connection, now: float, at_most: int) -> int:
    """How many wait, counted up to `at_most`."""
    some = sa.select(jobs.c.id).where(_waits(now)).limit(at_most).subquery()
    return int(connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one())


def _waits(now: float) -> sa.ColumnElement[bool]:
    unplaced = sa.not_(sa.exists().where(placements.c.job_id == jobs.c.id))
    return sa.and_(jobs.c.status == Status.QUEUED, sa.not_(jobs.c.stop_requested), jobs.c.not_before <= now, unplaced)


@lru_cache(maxsize=4096)
def _wanted(resources: Any, bound: Any) -> Wanted | Refused:
    """Remembered: a long queue asks for few different things."""
    try:
        found = Resources.model_validate({} if resources is None else orjson.loads(resources))
        return Wanted(found, None if bound is None else float(bound))
    except ValidationError as error:
        return Refused(complaint_of(error, "resources"))
    except (ValueError, TypeError) as error:
        return Refused(f"its spec is refused ({error})"[:500])
