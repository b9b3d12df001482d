"""Every transition of a job, on SQLite and PostgreSQL: fenced, evented, and refused when it isn't legal."""

import re
import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from epochcast.events import EventId, Progress, decode
from epochcast.jobs import JobError, Status
from shared.archive import Chunk
from shared.attempt import LeaseLost, MetricPoint, NewModel, ProgressState, StoredFile
from shared.claims import claim
from shared.database import Database
from shared.errors import IdempotencyConflict, IllegalTransition, JobNotFound
from shared.placement import place
from shared.queries import Queries
from shared.recovery import Recovery
from shared.rows import progress_message
from shared.store import IdempotencyKey, Store
from shared.tables import gpus, jobs, placements, transition_events
from shared.transitions import error_message
from tests.shared.records import IDENTITY, add_host, claim_placed, expire_lease, host_state, record_of, spec
from worker.job_state import complete_message


@pytest.fixture
def database(database: Database) -> Database:
    add_host(database, host_state(slots=100, gpus=2))
    return database


def unannounced(store: Store, job_id: int) -> list[str]:
    return [str(waiting.entry.id) for waiting in store.unannounced() if waiting.job_id == job_id]


def test_a_new_job_is_queued_with_its_first_event_in_the_same_transaction(store: Store) -> None:
    job, is_new = store.create(spec(tags=["a", "a", "b"]), "alice")
    assert is_new
    assert (job.status, job.generation, job.last_event_id, job.queue_position) == (Status.QUEUED, 1, "1-1", 1)
    [waiting] = store.unannounced()
    event = decode(waiting.entry.payload)
    assert isinstance(event, Progress)
    assert (event.id, event.status, event.progress, waiting.entry.prev) == ("1-1", Status.QUEUED, 0.0, EventId(0, 0))


def test_the_same_idempotency_key_gives_the_same_job_and_another_body_is_refused(store: Store) -> None:
    key = IdempotencyKey("k", "a" * 64)
    first, _ = store.create(spec(), "alice", key)
    again, is_new = store.create(spec(), "alice", key)
    assert (again.job_id, is_new) == (first.job_id, False)
    other_owner, is_new = store.create(spec(), "bob", key)
    assert other_owner.job_id != first.job_id
    assert is_new
    with pytest.raises(IdempotencyConflict, match=rf"job {first.job_id} with another body"):
        store.create(spec(), "alice", IdempotencyKey("k", "b" * 64))


def test_simultaneous_submissions_with_one_key_make_one_job(store: Store) -> None:
    made: list[int] = []

    def submit() -> None:
        made.append(store.create(spec(), "alice", IdempotencyKey("race", "a" * 64))[0].job_id)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1


def test_a_foreign_job_looks_like_a_missing_one(store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    assert store.get(job.job_id, visible_to="alice").job_id == job.job_id
    for action in (store.get, store.request_stop):
        with pytest.raises(JobNotFound, match=f"job {job.job_id} does not exist"):
            action(job.job_id, visible_to="bob")
    with pytest.raises(JobNotFound):
        store.get(2**62)


def test_only_one_of_many_competing_claims_wins(database: Database, store: Store) -> None:
    jobs = [store.create(spec(), "alice")[0].job_id for _ in range(10)]
    place(database)
    won: list[int] = []

    def compete() -> None:
        won.extend(job_id for job_id in jobs if claim(database, job_id, "host-1", 120, 1, IDENTITY) is not None)

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == jobs


def test_a_claim_needs_its_placement_and_raises_the_generation(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    assert claim(database, job.job_id, "host-1", 120, 1, IDENTITY) is None
    place(database)
    assert claim(database, job.job_id, "another-host", 120, 1, IDENTITY) is None
    claimed = claim(database, job.job_id, "host-1", 120, 3, IDENTITY)
    assert claimed is not None
    assert (claimed.job.status, claimed.job.generation, claimed.job.attempt) == (Status.RUNNING, 2, 1)
    assert claimed.job.spec.threads == 3
    assert [str(entry.id) for entry in claimed.unannounced] == ["1-1", "2-1"]
    assert claim(database, job.job_id, "host-1", 120, 1, IDENTITY) is None
    assert store.unannounced() == [], "the claimer ships them: its lease is live"


def test_a_spec_of_a_later_version_is_read_and_claimed_and_kept_whole(database: Database, store: Store) -> None:
    """While a fleet is updated; a job's stored spec is only ever added to."""
    job, _ = store.create(spec(), "alice")
    with database.write() as connection:
        stored = connection.execute(sa.select(jobs.c.spec).where(jobs.c.id == job.job_id)).scalar_one()
        later = {**stored, "not_known_yet": 1}
        connection.execute(jobs.update().where(jobs.c.id == job.job_id).values(spec=later))
    assert store.get(job.job_id).spec == job.spec
    claimed = claim_placed(database, job.job_id)
    assert claimed.job.spec.recipe == job.spec.recipe
    with database.read() as connection:
        kept = connection.execute(sa.select(jobs.c.spec).where(jobs.c.id == job.job_id)).scalar_one()
    assert kept["not_known_yet"] == 1


def test_a_stale_attempt_can_write_nothing(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    stale = record_of(database, claim_placed(database, job.job_id))
    expire_lease(database, job.job_id)
    assert Recovery(database).reap() == [job.job_id]
    file = StoredFile("checkpoint", "k", 1, "0" * 64, epoch=1)
    state = ProgressState(1, 0.1, 0.5, {"loss": 0.5}, None)
    writes: list[Callable[[], object]] = [
        lambda: stale.heartbeat(120),
        lambda: stale.record(state, [MetricPoint(1, None, {"loss": 0.5}, 0.0)], Chunk(2, 2, b"{}")),
        lambda: stale.commit_checkpoint(file),
        lambda: stale.add_artifact(file),
        lambda: stale.record_launcher(1, 1),
        lambda: stale.requeue("drained", "x"),
        lambda: stale.finish(
            Status.STOPPED, seq=2, prev=EventId(2, 1), make_event=progress_message, lease_s=1, outcome="stopped"
        ),
    ]
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    now = store.get(job.job_id)
    assert (now.status, now.current_epoch) == (Status.QUEUED, 0)
    assert Queries(database).artifacts(job.job_id) == []
    assert Queries(database).metrics(job.job_id) == {"epoch": []}


def test_a_live_lease_is_not_reaped_and_a_lost_job_runs_again(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    claim_placed(database, job.job_id)
    assert Recovery(database).reap() == []
    expire_lease(database, job.job_id)
    assert Recovery(database).reap() == [job.job_id]
    assert Recovery(database).reap() == []
    assert unannounced(store, job.job_id) == ["1-1", "2-1", "3-1"]
    assert claim_placed(database, job.job_id).job.attempt == 2
    assert [row["outcome"] for row in Queries(database).attempts(job.job_id)] == ["lost", None]


def test_three_losses_in_a_row_without_a_new_checkpoint_fail_the_job(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    for attempt in range(5):
        record = record_of(database, claim_placed(database, job.job_id))
        if attempt == 2:  # progress was made: counting starts again
            record.commit_checkpoint(StoredFile("checkpoint", "k", 1, "0" * 64, epoch=1))
        expire_lease(database, job.job_id)
        Recovery(database).reap()
    ended = store.get(job.job_id)
    assert ended.status is Status.FAILED
    assert ended.error is not None
    assert ended.error.type == "lost"
    assert ended.error_message == "lost 3 times in a row without a new checkpoint"


def test_stop_of_a_queued_job_ends_it_at_once_and_again_changes_nothing(database: Database, store: Store) -> None:
    job, _ = store.create(spec(gpus=1), "alice")
    place(database)
    stopped = store.request_stop(job.job_id)
    assert (stopped.status, stopped.generation, stopped.hosts) == (Status.STOPPED, 2, [])
    assert store.request_stop(job.job_id).generation == 2
    with database.read() as connection:
        assert connection.execute(sa.select(placements)).all() == []
        assert connection.execute(sa.select(gpus.c.job_id).where(gpus.c.job_id.is_not(None))).all() == []


def test_stop_of_a_running_job_sets_the_flag_that_its_heartbeat_returns(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    record = record_of(database, claim_placed(database, job.job_id))
    assert not record.heartbeat(120).stop_requested
    asked = store.request_stop(job.job_id)
    assert (asked.status, asked.stop_requested, asked.generation) == (Status.RUNNING, True, 2)
    assert record.heartbeat(120).stop_requested
    expire_lease(database, job.job_id)
    Recovery(database).reap()
    assert store.get(job.job_id).status is Status.STOPPED


def test_finish_writes_model_metrics_event_and_frees_the_gpus_together(database: Database, store: Store) -> None:
    job, _ = store.create(spec(gpus=2), "alice")
    claimed = claim_placed(database, job.job_id)
    assert len(claimed.gpus) == 2
    record = record_of(database, claimed)
    model = NewModel(StoredFile("model", "models/m", 9, "1" * 64), {"val_loss": 0.2}, {"recipe": "x"})
    ended, entry = record.finish(
        Status.SUCCEEDED,
        seq=2,
        prev=EventId(2, 1),
        make_event=complete_message({"val_loss": 0.2}),
        lease_s=60,
        outcome="succeeded",
        final_metrics={"val_loss": 0.2},
        state=ProgressState(10, 1.0, 0.2, {"val_loss": 0.2}, None),
        model=model,
    )
    assert (ended.status, ended.progress, ended.final_metrics) == (Status.SUCCEEDED, 1.0, {"val_loss": 0.2})
    event = decode(entry.payload)
    assert event.type == "complete"
    assert event.model_id == ended.model_id
    assert Queries(database).model(ended.model_id or 0, "alice")["sha256"] == "1" * 64
    with database.read() as connection:
        assert connection.execute(sa.select(gpus.c.uuid).where(gpus.c.job_id.is_not(None))).all() == []
    assert store.unannounced() == [], "the finisher still holds its lease to ship it"
    expire_lease(database, job.job_id)
    assert unannounced(store, job.job_id)[-1] == "2-2"
    for waiting in store.unannounced():
        store.mark_announced(waiting.job_id, waiting.entry.id)
    assert store.unannounced() == []


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_what_has_ended_is_not_stopped(database: Database, store: Store, status: Status) -> None:
    job, _ = store.create(spec(), "alice")
    record = record_of(database, claim_placed(database, job.job_id))
    failed = status is Status.FAILED
    record.finish(
        status,
        seq=2,
        prev=EventId(2, 1),
        make_event=error_message if failed else complete_message({}),
        lease_s=60,
        outcome=str(status),
        error=JobError(type="user_error", message="no") if failed else None,
    )
    message = f"job {job.job_id} is {status}; only queued or running jobs can be stopped"
    with pytest.raises(IllegalTransition, match=message):
        store.request_stop(job.job_id)


def test_restart_resumes_from_the_pointer_or_from_scratch(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    with pytest.raises(IllegalTransition, match="is queued; only failed or stopped jobs can be restarted"):
        store.restart(job.job_id)
    record = record_of(database, claim_placed(database, job.job_id))
    record.commit_checkpoint(StoredFile("checkpoint", "one", 1, "0" * 64, epoch=4))
    record.finish(Status.STOPPED, seq=2, prev=EventId(2, 1), make_event=progress_message, lease_s=60, outcome="stopped")
    again = store.restart(job.job_id)
    assert (again.status, again.generation, again.current_epoch, again.progress) == (Status.QUEUED, 3, 4, 0.4)
    with pytest.raises(LeaseLost):
        record.heartbeat(120)
    claimed = claim_placed(database, job.job_id)
    assert [checkpoint.key for checkpoint in claimed.checkpoints] == ["one"]
    store.request_stop(job.job_id)
    expire_lease(database, job.job_id)
    Recovery(database).reap()
    scratch = store.restart(job.job_id, from_scratch=True)
    assert (scratch.current_epoch, scratch.progress, scratch.stop_requested) == (0, 0.0, False)
    assert claim_placed(database, job.job_id).checkpoints == ()


def test_retention_keeps_the_last_two_checkpoints_and_the_best(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    record = record_of(database, claim_placed(database, job.job_id))
    dropped = []
    for epoch, loss in enumerate([0.9, 0.1, 0.5, 0.4, 0.3], start=1):
        dropped += record.commit_checkpoint(StoredFile("checkpoint", f"e{epoch}", 1, "0" * 64, epoch=epoch, loss=loss))
    assert dropped == ["e1", "e3"]
    assert [row["key"] for row in Queries(database).artifacts(job.job_id)] == ["e2", "e4", "e5"]


def test_metrics_of_a_repeated_epoch_give_the_newest(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    record = record_of(database, claim_placed(database, job.job_id))
    record.record(None, [MetricPoint(1, None, {"loss": 1.0}, 0.0), MetricPoint(2, None, {"loss": 0.9}, 0.0)], None)
    record.record(None, [MetricPoint(2, None, {"loss": 0.8, "acc": None}, 0.0), MetricPoint(2, 5, {"a": 1.0}, 0)], None)
    assert Queries(database).metrics(job.job_id) == {"epoch": [1, 2], "loss": [1.0, 0.8], "acc": [None, None]}
    assert Queries(database).step_metrics(job.job_id) == {"epoch": [2], "step": [5], "a": [1.0]}


def test_each_transition_names_the_event_before_it(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    record = record_of(database, claim_placed(database, job.job_id))
    record.record(None, [], Chunk(2, 7, b'{"id":"2-7","type":"log","status":"running"}'))
    record.requeue("drained", "deploy")
    with database.read() as connection:
        rows = connection.execute(
            sa.select(transition_events.c.generation, transition_events.c.prev).order_by(transition_events.c.generation)
        ).all()
    assert [tuple(row) for row in rows] == [(1, "0-0"), (2, "1-1"), (3, "2-7")]


def test_a_job_that_pauses_before_its_next_attempt_says_until_when_and_why(database: Database, store: Store) -> None:
    job, _ = store.create(spec(), "alice")
    record_of(database, claim_placed(database, job.job_id)).requeue("failed", "CUDA out of memory", delay_s=60)
    reason = store.get(job.job_id).pending_reason or ""
    assert re.fullmatch(r"tries again at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ: CUDA out of memory", reason)
    with database.write() as connection:
        connection.execute(sa.update(jobs).values(not_before=0.0))
    record_of(database, claim_placed(database, job.job_id)).requeue("drained", "the worker was shut down")
    assert store.get(job.job_id).pending_reason is None
