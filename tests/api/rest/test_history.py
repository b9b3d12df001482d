"""Events, logs, metrics and attempts of a job; what pollers see while it runs."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.downsampling import downsample
from epochcast.events import encode
from epochcast.jobs import Status
from shared.attempt import MetricPoint
from shared.database import Database
from shared.event_log import log_key
from shared.queries import Point, Queries
from shared.rows import moment, progress_message
from tests.api.rest.served import Served, problem
from tests.api.training import Training

JOBS = "/api/v1/training-jobs"


@pytest.fixture
def run(served: Served, database: Database) -> Iterator[Training]:
    """A job of alice that the test trains itself, so no dispatcher may place it."""
    served.app.state.gateway.dispatcher.stop()
    training = Training(database, served.settings.events_redis_url)
    yield training
    training.close()


# --- events


def test_events_are_the_workers_own_bytes(alice: httpx2.Client, run: Training) -> None:
    run.start().report(2)
    run.say('umlauts ü, quotes " and </script>')
    content = alice.get(f"{JOBS}/{run.job_id}/events").content
    for entry in run.shipped:
        assert entry.payload in content


def test_events_page_to_the_end_without_a_hole_or_a_repeat(alice: httpx2.Client, run: Training) -> None:
    run.start().report(25)
    found, after = [], "0"
    while page := alice.get(f"{JOBS}/{run.job_id}/events", params={"after": after, "limit": 4}).json():
        found += [event["id"] for event in page["items"]]
        assert page["resync"] is False
        if not page["items"]:
            break
        after = page["next_after"]
    assert found == ["1-1"] + [f"2-{seq}" for seq in range(1, 27)]
    assert after == found[-1]


def test_events_beyond_the_end_are_empty_and_keep_the_cursor(alice: httpx2.Client, run: Training) -> None:
    run.start().report(1)
    page = alice.get(f"{JOBS}/{run.job_id}/events?after=2-2").json()
    assert page == {"items": [], "next_after": "2-2", "resync": False}


def test_a_malformed_cursor_is_422(alice: httpx2.Client, run: Training) -> None:
    for cursor in ("x", "1", "1-", "-1", "01-1", "1-1-1", "9" * 50):
        for what in ("events", "logs"):
            problem(alice.get(f"{JOBS}/{run.job_id}/{what}", params={"after": cursor}), 422, "invalid_cursor")


def test_events_that_redis_lost_come_from_the_record(alice: httpx2.Client, run: Training) -> None:
    run.start().report(5)
    run.finish()
    run.client.flushall()
    page = alice.get(f"{JOBS}/{run.job_id}/events").json()
    assert [event["id"] for event in page["items"]] == ["1-1"] + [f"2-{seq}" for seq in range(1, 8)]
    assert page["items"][-1]["type"] == "complete"
    assert page["resync"] is False


def test_events_that_everybody_lost_are_a_resync(alice: httpx2.Client, run: Training) -> None:
    run.start().report(3)
    lost = run.report(3, ship=False)
    (after_it,) = run.report(1, ship=False)
    run.append(replace(after_it, gap=True))
    page = alice.get(f"{JOBS}/{run.job_id}/events").json()
    assert page["resync"] is True
    assert str(lost[0].id) not in [event["id"] for event in page["items"]]
    assert page["next_after"] == str(after_it.id)


# --- logs


def test_logs_are_filtered_by_level_and_shown_as_text(alice: httpx2.Client, run: Training) -> None:
    run.start().report(1)
    lines = [run.say(f"line {number}") for number in range(3)]
    path = f"{JOBS}/{run.job_id}/logs"
    page = alice.get(path).json()
    assert [line["message"] for line in page["items"]] == ["line 0", "line 1", "line 2"]
    assert [
        line["message"] for line in alice.get(path, params={"after": str(lines[0].id), "limit": 1}).json()["items"]
    ] == ["line 1"]
    assert alice.get(path, params={"level": "WARNING"}).json()["items"] == []
    text = alice.get(path, headers={"Accept": "text/plain"})
    assert text.headers["content-type"].startswith("text/plain")
    assert [line.split(" ", 1)[1] for line in text.text.splitlines()] == ["INFO line 0", "INFO line 1", "INFO line 2"]
    problem(alice.get(path, params={"level": "loud"}), 422, "invalid")


# --- the job while it runs


def test_a_running_job_is_read_from_the_workers_snapshot(alice: httpx2.Client, run: Training) -> None:
    run.start()
    (entry,) = run.report(1, ship=False)
    shown = run.job.model_copy(
        update={"current_epoch": 7, "last_event_id": str(entry.id), "timestamp": moment(time.time())}
    )
    snapshot = shown.model_dump_json().encode()
    run.log.append(run.job_id, entry, snapshot=snapshot, current=encode(progress_message(run.job)))
    assert alice.get(f"{JOBS}/{run.job_id}").content == snapshot


def test_an_older_snapshot_than_the_record_is_not_shown(alice: httpx2.Client, run: Training) -> None:
    run.start()
    (entry,) = run.report(1, ship=False)
    old = run.job.model_copy(update={"last_event_id": "2-1", "timestamp": moment(0)})
    snapshot = old.model_dump_json().encode()
    run.log.append(run.job_id, entry, snapshot=snapshot, current=encode(progress_message(run.job)))
    run.finish(ship=False)
    assert alice.get(f"{JOBS}/{run.job_id}").json()["status"] == "succeeded"


def test_an_older_end_than_the_records_is_not_shown(alice: httpx2.Client, run: Training) -> None:
    """A job was stopped, restarted and succeeded; then Redis comes back from a dump of before its restart."""
    run.start()
    stopped = run.finish(Status.STOPPED, ship=False)
    old = run.job.model_copy(update={"timestamp": moment(time.time() - 60)})
    run.log.append(run.job_id, stopped, snapshot=old.model_dump_json().encode(), current=encode(progress_message(old)))
    assert alice.get(f"{JOBS}/{run.job_id}").json()["status"] == "stopped"
    run.store.restart(run.job_id)
    run.start()
    run.finish(ship=False)
    run.client.delete(log_key(run.job_id))
    stopped = replace(stopped, gap=True)  # or the log would want what was before it
    run.log.append(run.job_id, stopped, snapshot=old.model_dump_json().encode(), current=encode(progress_message(old)))
    assert alice.get(f"{JOBS}/{run.job_id}").json()["status"] == "succeeded"


def test_an_unreadable_snapshot_is_answered_from_the_record(alice: httpx2.Client, run: Training) -> None:
    run.start().report(1)  # this training publishes {} as its snapshot
    assert alice.get(f"{JOBS}/{run.job_id}").json()["status"] == "running"


# --- metrics and attempts


def test_metrics_come_by_column_for_one_job_and_for_several(alice: httpx2.Client, run: Training) -> None:
    run.start()
    points = [MetricPoint(epoch, None, {"train_loss": 1 / epoch}, 0.0) for epoch in range(1, 101)]
    points.append(MetricPoint(101, None, {"train_loss": None, "val_loss": 2.0}, 0.0))
    run.record.record(None, points, None)
    columns = alice.get(f"{JOBS}/{run.job_id}/metrics").json()
    assert columns["epoch"] == list(range(1, 102))
    assert columns["val_loss"] == [None] * 100 + [2.0]
    fewer = alice.get(f"{JOBS}/{run.job_id}/metrics?max_points=10").json()
    assert len(fewer["epoch"]) <= 10
    assert {1, 101} <= set(fewer["epoch"])
    several = alice.get(f"{JOBS}/metrics?job_id={run.job_id}&job_id={run.job_id}").json()
    assert several == {"items": [{"job_id": run.job_id, "metrics": columns}]}
    run.record.record(None, [MetricPoint(1, 10, {"grad_norm": 0.5}, 0.0)], None)
    steps = alice.get(f"{JOBS}/{run.job_id}/metrics?by=step").json()
    assert steps == {"epoch": [1], "step": [10], "grad_norm": [0.5]}
    problem(alice.get(f"{JOBS}/metrics"), 422, "invalid")
    problem(alice.get(f"{JOBS}/metrics?job_id=x"), 422, "invalid")


def test_a_history_of_any_length_is_read_in_parts_that_sql_answers_in_time(
    alice: httpx2.Client, run: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.start()
    points = [MetricPoint(epoch, None, {"loss": 1 / epoch}, 0.0) for epoch in range(1, 21)]
    points += [MetricPoint(epoch, step, {"lr": step / 10}, 0.0) for epoch in range(1, 8) for step in range(3)]
    run.record.record(None, points, None)
    address = f"{JOBS}/{run.job_id}/metrics"
    whole = [alice.get(f"{address}?by={by}").json() for by in ("epoch", "step")]
    read: list[int] = []
    points_of = Queries.points

    def counted(queries: Queries, *args: Any, **kwargs: Any) -> list[Point]:
        page = points_of(queries, *args, **kwargs, limit=10)
        read.append(len(page))
        return page

    monkeypatch.setattr("shared.queries.POINTS_AT_ONCE", 10)
    monkeypatch.setattr(Queries, "points", counted)
    assert [alice.get(f"{address}?by={by}").json() for by in ("epoch", "step")] == whole
    assert read == [10, 10, 0, 10, 10, 1]


def test_attempts_say_where_and_why(alice: httpx2.Client, run: Training) -> None:
    run.start().report(1)
    run.finish()
    (attempt,) = alice.get(f"{JOBS}/{run.job_id}/attempts").json()["items"]
    assert (attempt["number"], attempt["host"], attempt["outcome"]) == (1, "test-host", "succeeded")
    assert attempt["ended_at"] is not None
    assert [(member["host"], member["outcome"]) for member in attempt["members"]] == [("test-host", "succeeded")]


# --- downsampling

values = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))


@given(st.integers(2, 40), st.lists(st.tuples(values, values), max_size=300))
def test_downsampling_keeps_real_rows_in_order(max_points: int, rows: list[tuple[float | None, float | None]]) -> None:
    columns: dict[str, list[Any]] = {
        "epoch": list(range(len(rows))),
        "a": [a for a, _ in rows],
        "b": [b for _, b in rows],
    }
    fewer = downsample(columns, max_points)
    assert len(fewer["epoch"]) <= max(max_points, 0)
    assert fewer["epoch"] == sorted(set(fewer["epoch"]))
    assert [(columns["a"][row], columns["b"][row]) for row in fewer["epoch"]] == list(
        zip(fewer["a"], fewer["b"], strict=True)
    )


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=5, max_size=300), st.integers(4, 20))
def test_downsampling_keeps_the_extremes(series: list[float], max_points: int) -> None:
    fewer = downsample({"epoch": list(range(len(series))), "loss": series}, max_points)
    assert min(fewer["loss"]) == min(series)
    assert max(fewer["loss"]) == max(series)
