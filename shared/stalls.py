"""Whether running jobs train: when each was last heard of by a report, beside whether its host lives."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from epochcast.jobs import Status
from shared.rows import Row, optional_moment
from shared.tables import attempts, jobs, placements

# No report for so many epochs' time, and never less than so long, is a stall.
STALL_EPOCHS = 5
STALL_AT_LEAST_S = 600.0


def on_hosts(wanted: sa.Select[Any], host: sa.Column[str], names: Sequence[str] | None) -> sa.Select[Any]:
    """Only what is on these hosts; None: on all."""
    return wanted if names is None else wanted.where(host.in_(names))


def training_by_host(
    connection: sa.Connection, now: float, names: Sequence[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The running jobs of each host (of all, or those with these names), as `GET /hosts` shows them under `training`.

    `silent_s`: since its last report, or since its attempt began. `is_stalled`: that is longer than its epochs explain.
    """
    attempt = sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.attempt)
    wanted = (
        sa.select(
            placements.c.host,
            jobs.c.id,
            jobs.c.reported_at,
            jobs.c.eta_s,
            jobs.c.current_epoch,
            jobs.c.total_epochs,
            attempts.c.started_at,
        )
        .join_from(placements, jobs, jobs.c.id == placements.c.job_id)
        .join(attempts, attempt)
        .where(jobs.c.status == Status.RUNNING)
        .order_by(placements.c.host, jobs.c.id)
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(on_hosts(wanted, placements.c.host, names)):
        found.setdefault(row.host, []).append(_training(row, now))
    return found


def _training(row: Row, now: float) -> dict[str, Any]:
    reported = row.reported_at if row.reported_at is not None and row.reported_at >= row.started_at else None
    silent_s = max(0.0, now - (row.started_at if reported is None else reported))
    return {
        "job_id": row.id,
        "reported_at": optional_moment(reported),
        "silent_s": round(silent_s, 1),
        "is_stalled": silent_s > max(STALL_AT_LEAST_S, STALL_EPOCHS * _epoch_s(row)),
    }


def _epoch_s(row: Row) -> float:
    """How long its epochs take; 0 where that isn't known yet."""
    left = row.total_epochs - row.current_epoch
    return row.eta_s / left if row.eta_s is not None and left > 0 else 0.0
