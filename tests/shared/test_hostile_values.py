"""What scripts and users may hand in and no database or placing pass may stumble over, on SQLite and PostgreSQL."""

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from epochcast.events import EventId
from epochcast.jobs import JobError, Metrics, Resources, Status
from shared.attempt import MetricPoint, NewModel, ProgressState, StoredFile
from shared.database import Database
from shared.placement import Placed, place
from shared.queries import Queries
from shared.store import Store
from shared.tables import jobs
from shared.transitions import error_message
from tests.shared.records import add_host, claim_placed, host_state, record_of, spec
from worker.job_state import complete_message

HOSTILE = "a\0b\ud800c"
STORED = "a\ufffdb\ufffdc"


@pytest.fixture
def database(database: Database) -> Database:
    add_host(database, host_state(slots=9, gpus=1))
    return database


def test_an_error_with_characters_that_sql_has_not_ends_its_job_all_the_same(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    error = JobError(type="user_error", message=HOSTILE, detail=HOSTILE, traceback=HOSTILE)
    ended, entry = record_of(database, claim_placed(database, job.job_id)).finish(
        Status.FAILED,
        seq=2,
        prev=EventId(2, 1),
        make_event=error_message,
        lease_s=60,
        outcome="failed",
        reason=HOSTILE,
        error=error,
    )
    assert ended.error_message == STORED
    assert STORED.encode() in entry.payload
    [attempt] = Queries(database).attempts(job.job_id)
    assert attempt["reason"] == STORED
    assert attempt["error"]["traceback"] == STORED


def test_a_reason_to_queue_again_may_hold_anything(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    record_of(database, claim_placed(database, job.job_id)).requeue("drained", HOSTILE)
    assert Queries(database).attempts(job.job_id)[0]["reason"] == STORED


def test_metric_names_with_characters_that_sql_has_not_are_kept(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    record = record_of(database, claim_placed(database, job.job_id))
    metrics: Metrics = {HOSTILE: 1.0}
    record.record(ProgressState(1, 0.1, None, metrics, None), [MetricPoint(1, None, metrics, 0.0)], None)
    assert store.get(job.job_id).metrics == {STORED: 1.0}
    assert Queries(database).metrics(job.job_id) == {"epoch": [1], STORED: [1.0]}
    ended, _entry = record.finish(
        Status.SUCCEEDED,
        seq=2,
        prev=EventId(2, 1),
        make_event=complete_message({}),
        lease_s=60,
        outcome="succeeded",
        final_metrics=metrics,
        model=NewModel(StoredFile("model", "m", 1, "0" * 64), metrics, {"torch": HOSTILE}),
    )
    assert ended.final_metrics == {STORED: 1.0}


def test_gpu_memory_has_an_end() -> None:
    assert Resources(gpus=1, gpu_memory_gib=1e6).gpu_memory_gib == 1e6
    with pytest.raises(ValidationError, match="less than or equal to 1000000"):
        Resources(gpus=1, gpu_memory_gib=1e300)


def test_a_job_that_cannot_be_judged_stops_no_other_job(database: Database, store: Store) -> None:
    broken, fine = [store.create(spec(), "alice")[0].job_id for _ in range(2)]
    stored = spec().model_dump(mode="json") | {"resources": {"gpus": 1, "gpu_memory_gib": 1e300}}
    with database.write() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id == broken).values(spec=stored))
    assert place(database) == [Placed(fine, "host-1")]
    assert place(database) == []
    with database.read() as connection:
        reason = connection.execute(sa.select(jobs.c.pending_reason).where(jobs.c.id == broken)).scalar_one()
    assert reason == "can't be placed: its spec is refused (resources.gpu_memory_gib)"
