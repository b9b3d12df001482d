"""What users read of the record beyond one job: lists, history, attempts, artifacts, models."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from epochcast.jobs import Status, TrainingJob
from shared.archive import archived_events
from shared.database import Database
from shared.errors import ArtifactNotFound, ModelNotFound
from shared.event_log import Entry
from shared.rows import hosts_of, training_job
from shared.tables import artifacts, attempts, job_tags, jobs, members, metric_points, models


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list shows; None does not filter. `visible_to`: an owner who sees only their own."""

    status: Status | None = None
    owner: str | None = None
    tag: str | None = None
    recipe: str | None = None
    visible_to: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    items: list[TrainingJob]
    next_cursor: str | None


class InvalidCursor(ValueError):
    """Raised when a list's cursor is not one that this server gave out."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file in the artifact store, as the record knows it."""

    id: int
    job_id: int
    kind: str
    epoch: int | None
    key: str
    bytes: int
    sha256: str


Unit = Literal["epoch", "step"]
Columns = dict[str, list[Any]]
# A history may have any length; so many points SQL gives in a tenth of the time after which it counts as away.
POINTS_AT_ONCE = 10_000


class Point(NamedTuple):
    """What was reported of an epoch, or at one step of it; `step` -1: of the epoch as a whole."""

    epoch: int
    step: int
    reported: dict[str, float | None]


def columns_of(points: Sequence[Point], by: Unit) -> Columns:
    """As long as `points`; a metric that a point lacks is None there."""
    columns: Columns = {"epoch": [point.epoch for point in points]}
    if by == "step":
        columns["step"] = [point.step for point in points]
    for name in dict.fromkeys(name for point in points for name in point.reported):
        columns[name] = [point.reported.get(name) for point in points]
    return columns


class Queries:
    """Reads. Methods raise DatabaseUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def jobs(self, wanted: JobFilter, limit: int = 50, cursor: str | None = None, *, positions: bool = True) -> Page:
        """Newest first. `positions`: with each queued job's place in the queue. Raises InvalidCursor."""
        conditions = []
        if wanted.status is not None:
            conditions.append(jobs.c.status == wanted.status)
        for owner in (wanted.owner, wanted.visible_to):
            if owner is not None:
                conditions.append(jobs.c.owner == owner)
        if wanted.recipe is not None:
            conditions.append(jobs.c.recipe == wanted.recipe)
        if wanted.tag is not None:
            conditions.append(jobs.c.id.in_(sa.select(job_tags.c.job_id).where(job_tags.c.tag == wanted.tag)))
        if cursor is not None:
            conditions.append(jobs.c.id < _id_of_cursor(cursor))
        with self.database.read() as connection:
            rows = connection.execute(
                sa.select(jobs).where(*conditions).order_by(jobs.c.id.desc()).limit(limit + 1)
            ).all()
            more, rows = len(rows) > limit, rows[:limit]
            hosts = hosts_of(connection, [row.id for row in rows])
            queued = [row.id for row in rows if row.status == Status.QUEUED]
            places = _queue_positions(connection, queued) if positions and queued else {}
            items = [training_job(row, hosts.get(row.id, []), places.get(row.id)) for row in rows]
        return Page(items, _cursor_of_id(items[-1].job_id) if more else None)

    def jobs_of(self, job_ids: Sequence[int]) -> dict[int, TrainingJob]:
        """Those that there are, by id, without their places in the queue."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(jobs).where(jobs.c.id.in_(job_ids))).all()
            hosts = hosts_of(connection, [row.id for row in rows])
            return {row.id: training_job(row, hosts.get(row.id, [])) for row in rows}

    def metrics(self, job_id: int) -> Columns:
        """The whole history per epoch, by column."""
        return columns_of(self.points(job_id, "epoch", limit=None), "epoch")

    def step_metrics(self, job_id: int) -> Columns:
        """The whole history of reports by step: columns `epoch`, `step` and one per metric."""
        return columns_of(self.points(job_id, "step", limit=None), "step")

    def points(
        self, job_id: int, by: Unit, *, after: Point | None = None, limit: int | None = POINTS_AT_ONCE
    ) -> list[Point]:
        """The history's next points after `after`, epochs and steps ascending; `by` epoch: those of whole epochs."""
        key = sa.tuple_(metric_points.c.epoch, metric_points.c.step)
        wanted = metric_points.c.step == -1 if by == "epoch" else metric_points.c.step >= 0
        query = sa.select(metric_points.c.epoch, metric_points.c.step, metric_points.c.reported)
        if after is not None:
            wanted &= key > sa.tuple_(sa.literal(after.epoch), sa.literal(after.step))
        with self.database.read() as connection:
            rows = connection.execute(
                query.where(metric_points.c.job_id == job_id, wanted)
                .order_by(metric_points.c.epoch, metric_points.c.step)
                .limit(limit)
            ).all()
        return [Point(*row) for row in rows]

    def archived(self, job_id: int, cursor: Any, count: int = 500) -> list[Entry]:
        """Events after an EventId that SQL has (transition events and chunks)."""
        with self.database.read() as connection:
            return archived_events(connection, job_id, cursor, count)

    def attempts(self, job_id: int) -> list[dict[str, Any]]:
        """Each with its `members`: every host that took part, with the GPUs it held there."""
        with self.database.read() as connection:
            rows = connection.execute(
                sa.select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
            ).all()
            started = connection.execute(
                sa.select(members)
                .where(members.c.job_id == job_id, members.c.attempt.is_not(None))
                .order_by(members.c.member)
            ).all()
        of_attempt: dict[int, list[dict[str, Any]]] = {}
        for member in started:
            shown = {"host": member.host, "gpus": member.gpus, "outcome": member.outcome, "reason": member.reason}
            of_attempt.setdefault(member.attempt, []).append(shown)
        return [{**row._mapping, "members": of_attempt.get(row.number) or [_only_member(row)]} for row in rows]

    def artifacts(self, job_id: int) -> list[dict[str, Any]]:
        with self.database.read() as connection:
            rows = connection.execute(sa.select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.id))
            return [dict(row._mapping) for row in rows]

    def artifact(self, job_id: int, artifact_id: int) -> FileRecord:
        """Raises ArtifactNotFound."""
        with self.database.read() as connection:
            row = connection.execute(
                sa.select(artifacts).where(artifacts.c.id == artifact_id, artifacts.c.job_id == job_id)
            ).one_or_none()
        if row is None:
            raise ArtifactNotFound(job_id, artifact_id)
        return FileRecord(row.id, row.job_id, row.kind, row.epoch, row.key, row.bytes, row.sha256)

    def models(
        self, visible_to: str | None, limit: int = 50, cursor: str | None = None
    ) -> tuple[list[Any], str | None]:
        """Models newest first, each with its file's size and sha256. Raises InvalidCursor."""
        conditions = [] if visible_to is None else [models.c.owner == visible_to]
        if cursor is not None:
            conditions.append(models.c.id < _id_of_cursor(cursor))
        with self.database.read() as connection:
            rows = connection.execute(_MODELS.where(*conditions).order_by(models.c.id.desc()).limit(limit + 1)).all()
        found = [dict(row._mapping) for row in rows[:limit]]
        return found, _cursor_of_id(found[-1]["model_id"]) if len(rows) > limit else None

    def model(self, model_id: int, visible_to: str | None) -> dict[str, Any]:
        """Raises ModelNotFound."""
        with self.database.read() as connection:
            row = connection.execute(_MODELS.where(models.c.id == model_id)).one_or_none()
        if row is None or (visible_to is not None and row.owner != visible_to):
            raise ModelNotFound(model_id)
        return dict(row._mapping)


def _only_member(attempt: Any) -> dict[str, Any]:
    return {"host": attempt.host, "gpus": attempt.gpus, "outcome": attempt.outcome, "reason": attempt.reason}


def _queue_positions(connection: sa.Connection, job_ids: list[int]) -> dict[int, int]:
    """The places of several queued jobs from one look at the queue: counting for each takes seconds with thousands."""
    order = (jobs.c.priority.desc(), jobs.c.queued_at, jobs.c.id)
    place = sa.func.row_number().over(order_by=order).label("place")
    line = sa.select(jobs.c.id, place).where(jobs.c.status == Status.QUEUED).subquery()
    rows = connection.execute(sa.select(line.c.id, line.c.place).where(line.c.id.in_(job_ids)))
    return {row.id: int(row.place) for row in rows}


_MODELS = sa.select(
    models.c.id.label("model_id"),
    models.c.job_id,
    models.c.name,
    models.c.owner,
    models.c.metrics,
    models.c.lineage,
    models.c.created_at,
    artifacts.c.key,
    artifacts.c.bytes,
    artifacts.c.sha256,
).join(artifacts, artifacts.c.id == models.c.artifact_id)


def _cursor_of_id(identifier: int) -> str:
    return base64.urlsafe_b64encode(b"before:%d" % identifier).decode().rstrip("=")


def _id_of_cursor(cursor: str) -> int:
    try:
        decoded = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        prefix, number = decoded.split(":")
        identifier = int(number)
    except ValueError:
        raise InvalidCursor(
            f"cursor {cursor[:40]!r} was not given out by this server; leave it out to start over"
        ) from None
    if prefix != "before" or not 0 < identifier < 2**63:
        raise InvalidCursor(f"cursor {cursor[:40]!r} was not given out by this server; leave it out to start over")
    return identifier
