"""From rows of the record to what users see: the job, and the `progress` message of its state."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from epochcast.events import EventId, Progress
from epochcast.jobs import HostPlacement, JobError, Status, TrainingJob, TrainingJobSpec
from shared.tables import gpus, placements

Row = Any  # a sa.Row of `jobs`; SQLAlchemy types its columns as Any


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def optional_moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)


def training_job(row: Row, hosts: list[HostPlacement], queue_position: int | None = None) -> TrainingJob:
    """The job as `GET` returns it."""
    error = JobError.model_validate(row.error) if row.error else None
    return TrainingJob(
        job_id=row.id,
        name=row.name,
        owner=row.owner,
        status=Status(row.status),
        progress=row.progress,
        current_epoch=row.current_epoch,
        total_epochs=row.total_epochs,
        current_loss=row.current_loss,
        metrics=row.metrics,
        eta_s=row.eta_s,
        queue_position=queue_position,
        pending_reason=row.pending_reason if row.status == Status.QUEUED else None,
        expected_start_at=optional_moment(row.expected_start_at) if row.status == Status.QUEUED else None,
        stop_requested=row.stop_requested,
        attempt=row.attempt,
        generation=row.generation,
        model_id=row.model_id,
        final_metrics=row.final_metrics,
        error_message=error.message if error else None,
        error=error,
        spec=TrainingJobSpec.stored(row.spec),
        hosts=hosts,
        last_event_id=str(EventId(row.last_generation, row.last_seq)),
        created_at=moment(row.created_at),
        started_at=optional_moment(row.started_at),
        finished_at=optional_moment(row.finished_at),
        timestamp=moment(row.updated_at),
    )


def nodes_of(spec: dict[str, Any]) -> int:
    """On how many hosts a job trains, by its stored spec."""
    return int(spec.get("resources", {}).get("nodes", 1))


def progress_message(job: TrainingJob, event_id: EventId | str | None = None) -> Progress:
    """The job's state as a `progress` message: a transition's event, and every subscriber's first message."""
    return Progress(
        id=str(event_id) if event_id is not None else (job.last_event_id or "0-0"),
        job_id=job.job_id,
        status=job.status,
        progress=job.progress,
        current_epoch=job.current_epoch,
        total_epochs=job.total_epochs,
        timestamp=job.timestamp,
        current_loss=job.current_loss,
        metrics=job.metrics,
        eta_s=job.eta_s,
        attempt=job.attempt,
        stop_requested=job.stop_requested,
    )


def hosts_of(connection: sa.Connection, job_ids: list[int]) -> dict[int, list[HostPlacement]]:
    """Where each job is placed, with the indices of its GPUs there."""
    found: dict[int, list[HostPlacement]] = {}
    if not job_ids:
        return found
    rows = connection.execute(
        sa.select(placements).where(placements.c.job_id.in_(job_ids)).order_by(placements.c.job_id, placements.c.member)
    ).all()
    uuids = [uuid for row in rows for uuid in row.gpus]
    indices: dict[str, int] = {}
    if uuids:
        indices = {
            gpu.uuid: gpu.number
            for gpu in connection.execute(
                sa.select(gpus.c.uuid, gpus.c.index.label("number")).where(gpus.c.uuid.in_(uuids))
            )
        }
    for row in rows:
        held = HostPlacement(name=row.host, gpus=sorted(indices[uuid] for uuid in row.gpus if uuid in indices))
        found.setdefault(row.job_id, []).append(held)
    return found
