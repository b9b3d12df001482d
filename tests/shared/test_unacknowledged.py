"""Writes that are tried again because nobody knows whether they happened, on SQLite and PostgreSQL."""

from collections.abc import Callable
from typing import TypeVar

import pytest
import sqlalchemy as sa

from epochcast.events import EventId
from epochcast.jobs import JobError, Status, TrainingJob
from shared.archive import Chunk, archived_events
from shared.attempt import AttemptRecord, LeaseLost, MetricPoint, NewModel, StoredFile
from shared.database import Database, DatabaseUnavailable
from shared.event_log import Entry
from shared.queries import Queries
from shared.store import Store
from shared.tables import event_chunks, models
from shared.transitions import error_message
from tests.shared.records import add_host, claim_placed, expire_lease, host_state, record_of, spec
from tests.shared.unacknowledged import lost_answers
from worker.job_state import complete_message

Result = TypeVar("Result")


@pytest.fixture
def database(database: Database) -> Database:
    add_host(database, host_state(gpus=2))
    return database


@pytest.fixture
def job(database: Database) -> TrainingJob:
    return Store(database).create(spec(), "alice")[0]


@pytest.fixture
def record(database: Database, job: TrainingJob) -> AttemptRecord:
    return record_of(database, claim_placed(database, job.job_id))


def tried_twice(database: Database, write: Callable[[], Result], *, committed: bool = True) -> Result:
    """`write`'s second answer, after its first was lost."""
    with lost_answers(database, committed=committed), pytest.raises(DatabaseUnavailable):
        write()
    return write()


def succeed(record: AttemptRecord, seq: int = 2) -> tuple[TrainingJob, Entry]:
    return record.finish(
        Status.SUCCEEDED,
        seq=seq,
        prev=EventId(2, seq - 1),
        make_event=complete_message({"loss": 0.1}),
        lease_s=60,
        outcome="succeeded",
        final_metrics={"loss": 0.1},
        model=NewModel(StoredFile("model", "models/m", 9, "1" * 64), {}),
    )


def fail(record: AttemptRecord, message: str = "no") -> tuple[TrainingJob, Entry]:
    return record.finish(
        Status.FAILED,
        seq=2,
        prev=EventId(2, 1),
        make_event=error_message,
        lease_s=60,
        outcome="failed",
        error=JobError(type="user_error", message=message),
    )


@pytest.mark.parametrize("committed", [True, False])
def test_a_finish_that_nobody_acknowledged_is_written_once(
    database: Database, job: TrainingJob, record: AttemptRecord, committed: bool
) -> None:
    ended, entry = tried_twice(database, lambda: succeed(record), committed=committed)
    assert (ended.status, str(entry.id)) == (Status.SUCCEEDED, "2-2")
    assert ended == Store(database).get(job.job_id)
    assert [row["kind"] for row in Queries(database).artifacts(job.job_id)] == ["model"]
    with database.read() as connection:
        assert connection.execute(sa.select(models.c.id)).scalars().all() == [ended.model_id]
    record.heartbeat(60)  # the lease is still its own, to ship the event
    record.announced(entry, status=Status.SUCCEEDED)
    assert "2-2" not in {str(waiting.entry.id) for waiting in Store(database).unannounced()}


def test_a_finish_is_not_mistaken_for_another_one(database: Database, job: TrainingJob, record: AttemptRecord) -> None:
    with lost_answers(database, committed=True), pytest.raises(DatabaseUnavailable):
        fail(record)
    with pytest.raises(LeaseLost):
        succeed(record)
    with pytest.raises(LeaseLost):
        succeed(record, seq=3)
    Store(database).restart(job.job_id)
    with pytest.raises(LeaseLost):
        fail(record)
    expire_lease(database, job.job_id)


def test_a_longer_chunk_after_an_unacknowledged_one_adds_what_is_new(
    database: Database, job: TrainingJob, record: AttemptRecord
) -> None:
    lines = [f'{{"id":"2-{seq}","type":"log","status":"running"}}'.encode() for seq in range(2, 10)]
    with lost_answers(database, committed=True), pytest.raises(DatabaseUnavailable):
        record.record(None, [], Chunk(2, 5, b"\n".join(lines[:4])))
    record.record(None, [], Chunk(2, 9, b"\n".join(lines)))
    record.record(None, [], Chunk(2, 9, b"\n".join(lines)))
    with database.read() as connection:
        rows = connection.execute(sa.select(event_chunks.c.first_seq, event_chunks.c.last_seq)).all()
        entries = archived_events(connection, job.job_id, EventId(2, 1))
    assert [tuple(row) for row in rows] == [(2, 5), (6, 9)]
    assert [entry.payload for entry in entries] == lines


def test_a_checkpoint_and_an_artifact_that_nobody_acknowledged_stand_once(
    database: Database, job: TrainingJob, record: AttemptRecord
) -> None:
    tried_twice(database, lambda: record.commit_checkpoint(StoredFile("checkpoint", "one", 1, "0" * 64, epoch=1)))
    first = record.add_artifact(StoredFile("log", "log", 1, "0" * 64))
    assert record.add_artifact(StoredFile("log", "log", 5, "2" * 64)) == first
    assert [(row["key"], row["bytes"]) for row in Queries(database).artifacts(job.job_id)] == [("one", 1), ("log", 5)]
    assert record.commit_checkpoint(StoredFile("checkpoint", "two", 1, "0" * 64, epoch=2)) == []


def test_points_of_one_batch_are_one_statement_and_the_newest_of_an_epoch_counts(
    database: Database, job: TrainingJob, record: AttemptRecord
) -> None:
    statements: list[str] = []

    def note(_c: object, _k: object, statement: str, _p: object, _x: object, _many: bool) -> None:
        statements.append(statement)

    sa.event.listen(database.engine, "before_cursor_execute", note)
    points = [MetricPoint(1, step, {"loss": float(step)}, 0.0) for step in range(500)]
    tried_twice(database, lambda: record.record(None, points, None))
    assert len([one for one in statements if "metric_points" in one]) == 2
    record.record(None, [MetricPoint(1, 7, {"loss": 1.0}, 0.0), MetricPoint(1, 7, {"loss": 2.0}, 1.0)], None)
    history = Queries(database).step_metrics(job.job_id)
    assert (len(history["step"]), history["loss"][7]) == (500, 2.0)
