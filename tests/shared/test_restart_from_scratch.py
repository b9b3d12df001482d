"""A run that was started again from scratch has nothing to do with what came before it, on SQLite and PostgreSQL."""

import pytest

from epochcast.events import EventId
from epochcast.jobs import Status
from shared.attempt import AttemptRecord, StoredFile
from shared.claims import Claim
from shared.database import Database
from shared.queries import Queries
from shared.rows import progress_message
from shared.store import Store
from tests.shared.records import add_host, claim_placed, host_state, record_of, spec


@pytest.fixture
def database(database: Database) -> Database:
    add_host(database, host_state())
    return database


def checkpoint(record: AttemptRecord, key: str, loss: float) -> list[str]:
    return record.commit_checkpoint(StoredFile("checkpoint", key, 1, "0" * 64, epoch=1, loss=loss))


def stop(record: AttemptRecord, claimed: Claim) -> None:
    generation = claimed.job.generation
    record.finish(
        Status.STOPPED,
        seq=2,
        prev=EventId(generation, 1),
        make_event=progress_message,
        lease_s=60,
        outcome="stopped",
    )


def test_no_later_attempt_falls_back_to_a_checkpoint_of_the_run_before(database: Database) -> None:
    store = Store(database)
    job_id = store.create(spec(), "alice")[0].job_id
    claimed = claim_placed(database, job_id)
    before = record_of(database, claimed)
    checkpoint(before, "old", 0.01)
    stop(before, claimed)
    store.restart(job_id, from_scratch=True)
    claimed = claim_placed(database, job_id)
    assert claimed.checkpoints == ()
    after = record_of(database, claimed)
    checkpoint(after, "new", 0.5)
    stop(after, claimed)
    store.restart(job_id)
    assert [one.key for one in claim_placed(database, job_id).checkpoints] == ["new"]


def test_the_best_checkpoint_is_the_best_since_the_restart(database: Database) -> None:
    store = Store(database)
    job_id = store.create(spec(), "alice")[0].job_id
    claimed = claim_placed(database, job_id)
    before = record_of(database, claimed)
    checkpoint(before, "old", 0.01)
    stop(before, claimed)
    store.restart(job_id, from_scratch=True)
    after = record_of(database, claim_placed(database, job_id))
    dropped = [checkpoint(after, key, loss) for key, loss in [("best", 0.2), ("worse", 0.5), ("last", 0.4)]]
    assert dropped == [[], ["old"], []]
    assert [row["key"] for row in Queries(database).artifacts(job_id)] == ["best", "worse", "last"]
