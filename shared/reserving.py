"""Writes what a placing pass decided: seats of the jobs that still wait, reasons and expected starts of the others."""

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
import structlog
from pydantic import ValidationError

from epochcast.jobs import Status, TrainingJobSpec
from shared.database import is_outage
from shared.deciding import Decided
from shared.queue import Waiting, complaint_of
from shared.seats import Seat
from shared.tables import gpus, jobs, placements

logger = structlog.get_logger(__name__)

FIRST_POKE_S = 5.0
# Databases bound the parameters of a statement (SQLite: 32,766).
_IDS_AT_ONCE = 1_000

Placing = tuple[Waiting, list[Seat]]


def write(connection: sa.Connection, decided: Decided, now: float) -> tuple[list[Placing], frozenset[int]]:
    """Returns what was placed, and the jobs that were not after all: stopped, changed or just being changed by somebody
    else, or not fit to run. Their seats are free again; one that can't be written keeps no other waiting."""
    try:
        with connection.begin_nested():
            placed, left_out = _reserve(connection, decided.placed, now)
    except sa.exc.DBAPIError as error:
        if is_outage(error):
            raise
        placed, left_out = _one_by_one(connection, decided.placed, now)
    for reason, job_ids in decided.reasons.items():
        _update(connection, job_ids, pending_reason=reason)
    for at in dict.fromkeys(decided.starts.values()):
        _update(connection, [job_id for job_id, start in decided.starts.items() if start == at], expected_start_at=at)
    return placed, left_out


def _one_by_one(
    connection: sa.Connection, wanted: Iterable[Placing], now: float
) -> tuple[list[Placing], frozenset[int]]:
    placed: list[Placing] = []
    left_out: frozenset[int] = frozenset()
    for one, seats in wanted:
        try:
            with connection.begin_nested():
                done, not_done = _reserve(connection, [(one, seats)], now)
        except sa.exc.DBAPIError as error:
            if is_outage(error):
                raise
            done, not_done = [], frozenset({one.id})
            _refuse(connection, one, f"can't be placed: {type(error).__name__}: {error.orig}"[:500])
        placed += done
        left_out |= not_done
    return placed, left_out


def _reserve(connection: sa.Connection, wanted: Iterable[Placing], now: float) -> tuple[list[Placing], frozenset[int]]:
    by_id = {one.id: (one, seats) for one, seats in wanted}
    if not by_id:
        return [], frozenset()
    # The jobs' rows first: whoever ends a job holds its row, and releases what it finds placed by then.
    rows = connection.execute(
        sa.select(jobs.c.id, jobs.c.generation, jobs.c.spec)
        .where(jobs.c.id.in_(by_id), _still_waits())
        .order_by(jobs.c.id)
        .with_for_update(skip_locked=True)
    ).all()
    fit = {row.id for row in rows if row.generation == by_id[row.id][0].generation and _is_fit(connection, row, by_id)}
    placed = [by_id[job_id] for job_id in by_id if job_id in fit]
    if placed:
        _store(connection, placed, now)
    return placed, frozenset(by_id) - fit


def _is_fit(connection: sa.Connection, row: Any, by_id: dict[int, Placing]) -> bool:
    """Only what is about to run is checked whole: a spec that no attempt could read would be placed again and again."""
    try:
        TrainingJobSpec.stored(row.spec)
    except ValidationError as error:
        _refuse(connection, by_id[row.id][0], f"can't be placed: {complaint_of(error)}")
        return False
    return True


def _refuse(connection: sa.Connection, one: Waiting, reason: str) -> None:
    if reason != one.pending_reason:  # said once, not at every pass
        logger.error("job can't be placed", job_id=one.id, reason=reason)
        _update(connection, [one.id], pending_reason=reason)


def _store(connection: sa.Connection, placed: list[Placing], now: float) -> None:
    ids = [one.id for one, _ in placed]
    connection.execute(jobs.update().where(jobs.c.id.in_(ids)).values(pending_reason=None, expected_start_at=None))
    rows = [
        {
            "job_id": one.id,
            "member": member,
            "host": seat.host.name,
            "gpus": [gpu.uuid for gpu in seat.gpus],
            "placed_at": now,
            # The first poke is taken with the place; whoever placed the job sends it.
            "pokes": 1,
            "next_poke_at": now + FIRST_POKE_S,
        }
        for one, seats in placed
        for member, seat in enumerate(seats)
    ]
    connection.execute(placements.insert(), rows)
    cards = [{"of_job": one.id, "this": gpu.uuid} for one, seats in placed for seat in seats for gpu in seat.gpus]
    if cards:
        # In the order in which heartbeats write them: two that lock the same rows must not do so in a circle.
        cards.sort(key=lambda card: str(card["this"]))
        held = gpus.update().where(gpus.c.uuid == sa.bindparam("this"))
        # What others use of it now they will use when the job has gone.
        connection.execute(held.values(job_id=sa.bindparam("of_job"), others_bytes=gpus.c.used_bytes), cards)


def _update(connection: sa.Connection, job_ids: Sequence[int], **values: Any) -> None:
    """Of those that still wait. One that somebody else is changing is left alone, so that nobody waits in a circle."""
    for first in range(0, len(job_ids), _IDS_AT_ONCE):
        free = (
            sa.select(jobs.c.id)
            .where(jobs.c.id.in_(job_ids[first : first + _IDS_AT_ONCE]), _still_waits())
            .order_by(jobs.c.id)
            .with_for_update(skip_locked=True)
        )
        connection.execute(jobs.update().where(jobs.c.id.in_(free)).values(**values))


def _still_waits() -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.status == Status.QUEUED, sa.not_(jobs.c.stop_requested))
