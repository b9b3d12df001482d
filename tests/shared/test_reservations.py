"""A job that needs much and has waited long gets room kept for it; small ones take only what can't delay it."""

import sqlalchemy as sa

from shared.attempt import ProgressState
from shared.claims import claim
from shared.database import Database
from shared.deciding import FORECAST_AT_ONCE
from shared.placement import place
from shared.recovery import Recovery
from shared.store import Store
from shared.tables import gpus, jobs
from shared.vacancies import ENDING_S
from shared.waiting_reason import KEPT
from tests.shared.gangs import create_gang
from tests.shared.records import IDENTITY, add_host, create, host_state, record_of, spec

LIMIT_S = 300.0


def placed(database: Database) -> set[int]:
    """Who gets a place now."""
    return {one.job_id for one in place(database, reserve_after_s=LIMIT_S)}


def let_wait(database: Database, *job_ids: int, seconds: float = LIMIT_S + 1) -> None:
    with database.write() as connection:
        age = sa.update(jobs).where(jobs.c.id.in_(job_ids)).values(queued_at=jobs.c.queued_at - seconds)
        connection.execute(age)


def run(database: Database, job_id: int, host: str, eta_s: float | None = None) -> None:
    """Claims a placed job, begins it, and has it report how long it will take."""
    claimed = claim(database, job_id, host, 120, 1, IDENTITY)
    assert claimed is not None
    record = record_of(database, claimed)
    record.record_launcher(IDENTITY.pid, IDENTITY.started)
    if eta_s is not None:
        record.record(ProgressState(1, 0.1, None, {}, eta_s), [], None)


def end(database: Database, job_id: int) -> None:
    """The job's resources are free again."""
    with database.write() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(lease_until=1.0, stop_requested=True))
    assert Recovery(database).reap() == [job_id]


def reason(store: Store, job_id: int) -> str:
    text = store.get(job_id).pending_reason
    assert text is not None
    return text


def test_small_jobs_overtake_a_large_one_only_until_it_has_waited_long(database: Database, store: Store) -> None:
    add_host(database, host_state("a", gpus=2))
    first, second = create(store, gpus=1), create(store, gpus=1)
    assert placed(database) == {first, second}
    for job_id in (first, second):
        run(database, job_id, "a")
    large = create(store, gpus=2)
    overtaking = create(store, gpus=1)
    end(database, first)
    assert placed(database) == {overtaking}, "it has not waited long yet"
    run(database, overtaking, "a")
    let_wait(database, large)
    late = create(store, gpus=1)
    end(database, second)
    assert placed(database) == set(), "the free GPU is kept"
    assert reason(store, large).endswith("; room is kept for it (a)")
    assert reason(store, late) == KEPT
    end(database, overtaking)
    assert placed(database) == {large}
    assert placed(database) == set()


def test_what_the_large_job_does_not_need_is_for_anybody(database: Database, store: Store) -> None:
    add_host(database, host_state("a", gpus=3, slots=1))
    add_host(database, host_state("b", gpus=1))
    holding = create(store, gpus=2)
    assert placed(database) == {holding}
    run(database, holding, "a")
    large = create(store, gpus=2)
    let_wait(database, large)
    small, more, on_a_slot = create(store, gpus=1), create(store, gpus=1), create(store)
    assert placed(database) == {small, on_a_slot}
    assert store.get(small).hosts[0].name == "b", "the free GPU of a is one of the two that the large job waits for"
    assert reason(store, more) == KEPT


def test_a_job_that_surely_ends_in_time_borrows_what_is_kept(database: Database, store: Store) -> None:
    add_host(database, host_state("a", gpus=3))
    holding = create(store, gpus=1)
    assert placed(database) == {holding}
    run(database, holding, "a", eta_s=1000)
    large = create(store, gpus=3)
    let_wait(database, large)
    unknown = create(store, gpus=1)
    too_long = create(store, gpus=1, max_runtime_s=1001 - ENDING_S)
    in_time = create(store, gpus=1, max_runtime_s=900 - ENDING_S)
    assert placed(database) == {in_time}
    assert {reason(store, unknown), reason(store, too_long)} == {KEPT}


def test_without_knowing_an_end_nobody_borrows(database: Database, store: Store) -> None:
    add_host(database, host_state("a", gpus=2))
    holding = create(store, gpus=1)
    placed(database)
    run(database, holding, "a")
    let_wait(database, create(store, gpus=2))
    create(store, gpus=1, max_runtime_s=1.0)
    assert placed(database) == set(), "the end may come in the next second"


def test_a_job_that_fits_on_no_host_keeps_nothing_from_others(database: Database, store: Store) -> None:
    add_host(database, host_state("a", gpus=2, slots=0))
    impossible, slotless = create(store, gpus=3), create(store)
    let_wait(database, impossible, slotless)
    small = create(store, gpus=1)
    assert placed(database) == {small}
    assert reason(store, impossible) == (
        "needs 3 GPUs on one host; no host that is ready has that, even empty: the largest has 2 (a)"
    )
    assert reason(store, slotless) == "needs a CPU slot; no host that is ready offers one (EPOCHCAST_SLOTS)"
    fat = store.create(spec(gpus=1, gpu_memory_gib=500.0), "alice")[0].job_id
    placed(database)
    assert reason(store, fat) == "needs 1 GPU of 500 GiB; no host that is ready has that, even empty: none has one"


def test_hosts_are_kept_for_a_job_on_several(database: Database, store: Store) -> None:
    for name in ("a", "b", "c"):
        add_host(database, host_state(name, slots=1))
    running = [create(store) for _ in range(3)]
    assert placed(database) == set(running)
    where = {job_id: store.get(job_id).hosts[0].name for job_id in running}
    for job_id in running:
        run(database, job_id, where[job_id])
    gang = create_gang(store, nodes=2)
    let_wait(database, gang)
    small = create(store)
    end(database, running[0])
    assert placed(database) == set()
    end(database, running[1])
    assert placed(database) == {gang}
    end(database, running[2])
    assert placed(database) == {small}


def test_only_the_best_of_those_who_wait_long_has_room_kept(database: Database, store: Store) -> None:
    add_host(database, host_state("a", gpus=2))
    add_host(database, host_state("b", gpus=2))
    holding = [create(store, gpus=1) for _ in range(3)]
    assert placed(database) == set(holding)
    for job_id in holding:
        run(database, job_id, store.get(job_id).hosts[0].name)
    older, urgent = create(store, gpus=2), create(store, gpus=2, priority=1)
    let_wait(database, older, seconds=2 * LIMIT_S)
    let_wait(database, urgent)
    placed(database)
    assert "room is kept" in reason(store, urgent)
    assert "room is kept" not in reason(store, older)


def test_memory_of_a_job_that_has_just_ended_does_not_pass_the_large_one_by(database: Database, store: Store) -> None:
    """The host's next heartbeat says that it is free; until then small jobs that name no memory would take it."""
    add_host(database, host_state("a", gpus=1, free_gib=70))
    holding = create(store, gpus=1)
    placed(database)
    run(database, holding, "a")
    with database.write() as connection:
        connection.execute(sa.update(gpus).values(used_bytes=gpus.c.total_bytes))
    large = create(store, gpus=1, gpu_memory_gib=60.0)
    let_wait(database, large)
    create(store, gpus=1)
    end(database, holding)
    assert placed(database) == {large}
    with database.read() as connection:
        assert connection.execute(sa.select(gpus.c.used_bytes)).scalar_one() == 10 * 2**30, "others' memory stays"


def test_a_long_line_of_jobs_that_fit_nowhere_hides_no_job_that_fits(database: Database, store: Store) -> None:
    add_host(database, host_state(gpus=1))
    template = create(store, gpus=8)
    with database.write() as connection:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == template)).one()._asdict()
        del row["id"]
        connection.execute(jobs.insert(), [row] * 1200)
    fits = create(store, gpus=1)
    assert placed(database) == {fits}


# --- expected starts


def test_the_expected_start_comes_from_the_progress_of_what_runs(database: Database, store: Store) -> None:
    add_host(database, host_state("a", gpus=1))
    holding = create(store, gpus=1)
    placed(database)
    claimed = claim(database, holding, "a", 120, 1, IDENTITY)
    assert claimed is not None
    record = record_of(database, claimed)
    waits, behind = create(store, gpus=1, max_runtime_s=40.0), create(store, gpus=1)
    placed(database)
    assert store.get(waits).expected_start_at is None, "nothing was reported yet"
    for eta_s in (5000.0, 500.0):
        record.record(ProgressState(1, 0.1, None, {}, eta_s), [], None)
        placed(database)
        with database.read() as connection:
            now = database.time(connection)
        first, second = (store.get(job_id).expected_start_at for job_id in (waits, behind))
        assert first is not None
        assert second is not None
        assert abs(first.timestamp() - now - eta_s) < 60
        assert round(second.timestamp() - first.timestamp()) in range(90, 112), "after the first, which has 40 s + 60"
    end(database, holding)
    assert placed(database) == {waits}
    assert store.get(waits).expected_start_at is None
    assert store.get(behind).expected_start_at is not None


def test_a_limit_of_the_running_job_bounds_the_expected_start(database: Database, store: Store) -> None:
    add_host(database, host_state("a", slots=1))
    holding = create(store, max_runtime_s=600.0)
    placed(database)
    run(database, holding, "a")
    waits = create(store)
    placed(database)
    job = store.get(waits)
    assert job.expected_start_at is not None
    assert 500 < job.expected_start_at.timestamp() - job.created_at.timestamp() < 600 + 2 * ENDING_S


def test_far_back_in_the_line_no_start_is_told(database: Database, store: Store) -> None:
    add_host(database, host_state("a", slots=1))
    holding = create(store)
    placed(database)
    run(database, holding, "a", eta_s=100)
    waiting = [create(store, max_runtime_s=10.0) for _ in range(FORECAST_AT_ONCE + 1)]
    placed(database)
    told = [store.get(job_id).expected_start_at is not None for job_id in waiting]
    assert told == [True] * FORECAST_AT_ONCE + [False]
