"""The benchmarks run and say what they must; what they measure is never judged here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import write
from benchmarks.harness import machine
from benchmarks.harness.page import page_of
from benchmarks.harness.record import RESULTS, Record, load_all
from tests.dashboard.conftest import find_binary

CHECKOUT = Path(__file__).parent.parent


def run(name: str, *arguments: str) -> dict[str, Any]:
    """The JSON that a benchmark ends with."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=590)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert result["benchmark"] == name
    for table in result["tables"]:
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    return result


def record(result: dict[str, Any], **machine_more: str) -> Record:
    return Record(
        measured="2026-11-24",
        command="python -m benchmarks.some",
        seconds=1.5,
        load=0.25,
        machine={"cpu": "Some CPU", "cores": "2", **machine_more},
        versions={"python": "3.11.7"},
        result=result,
    )


# --- the benchmarks

# Platforms, Celery workers and Pythons that load torch, one after the other.
pytestmark = pytest.mark.timeout(600)


def test_report_times_each_way_and_counts_what_arrived() -> None:
    result = run("report", "--rounds=1", "--calls=20", "--only", "report", "xadd", "tensorboard")
    figures = result["figures"]
    assert {"report_us", "report_p99_us", "xadd_us", "tensorboard_us", "import_epochcast_ms"} <= figures.keys()
    assert all(value > 0 for value in figures.values())


def test_start_submits_warm_and_cold_and_compares_with_python_and_celery() -> None:
    result = run("start", "--rounds=1", "--uncounted=0")
    figures = result["figures"]
    assert all(figures[f"{way}_ms"] > figures[f"{way}_own_ms"] > 0 for way in ("python", "celery", "warm", "cold"))
    assert figures["fork_ms"] > 0
    assert len(result["tables"][1]["rows"]) == 3  # the goals


def test_placement_fills_fleets_claims_and_beats_on_both_databases() -> None:
    tiny = ("--hosts=4", "--jobs=60", "--scales=0.5,1", "--rounds=1", "--claims=8", "--processes=2", "--seconds=0.3")
    result = run("placement", *tiny)
    figures = result["figures"]
    for database in ("sqlite", "postgresql"):
        for hosts in (2, 4):
            ways = ("idle_s", "forecast_s", "freed_s", "placed_per_s")
            assert all(figures[f"{database}_{hosts}_{way}"] > 0 for way in ways)
        assert figures[f"{database}_claims_per_s"] > 0
    assert figures["renewals_per_s"] > 0
    assert figures["host_beats_per_s"] > 0


def test_training_runs_a_script_as_a_job_and_alone_with_the_same_threads() -> None:
    tiny = ("--seconds=0.1", "--repetitions=1", "--short-repetitions=1", "--short-epochs=3")
    figures = run("training", *tiny)["figures"]
    ratios = {f"{training}_{part}_ratio" for training in ("long", "short") for part in ("wall", "whole", "loop")}
    assert figures.keys() == ratios
    assert all(figures[name] > 0 for name in ratios)


def test_recovery_kills_workers_and_waits_for_the_next_step() -> None:
    figures = run("recovery", "--rounds=1", "--restarted-rounds=1")["figures"]
    for way in ("restarted", "elsewhere"):
        gone, queued, first = (figures[f"{way}_{name}_s"] for name in ("tree_gone", "queued_seen", "first_step"))
        assert 0 < gone < first
        assert 0 < queued < first


def test_relay_checks_every_message_and_compares_with_the_floor() -> None:
    options = ("--quick", "--turns=1", "--deliveries=3000", "--peers", "ours", "floor", "ceiling")
    figures = run("relay", *options)["figures"]
    assert {"ours_us_200x5", "floor_us_200x5", "ceiling_us_200x5", "ours_burst_us", "floor_burst_us"} == figures.keys()
    assert all(value > 0 for value in figures.values())


@pytest.mark.chromium
def test_dashboard_counts_frames_of_a_live_list_and_loads_it_with_nothing_cached() -> None:
    find_binary()
    figures = run("dashboard", "--rounds=1", "--seconds=2", "--loads=1", "--jobs=5", "--per-job=4")["figures"]
    for page in ("live", "empty"):
        assert 0 < figures[f"{page}_messages_per_s"] < 200
    assert figures["still_messages_per_s"] == 0
    for page in ("live", "empty", "still"):
        assert 0 < figures[f"{page}_cpu"] <= figures[f"{page}_busy"] + 0.01
        assert figures[f"{page}_late_by_page"] <= figures[f"{page}_late_share"] * 1000
    assert figures["first_paint_ms"] > 0
    assert 0 < figures["scripts_kb"] < 150


# --- the page


def test_the_page_is_what_the_saved_results_say_and_nothing_else() -> None:
    assert write.PAGE.read_text() == page_of(load_all(RESULTS)), "run python -m benchmarks.write --page-only"


def test_a_benchmark_without_tables_is_shown_with_all_its_figures() -> None:
    page = page_of([record({"benchmark": "some", "cnn": {"samples_per_s": 1200, "over_naive": 1.5}, "sizes": [1, 2]})])
    assert "| cnn.samples_per_s | 1200 |" in page
    assert "| sizes | 1, 2 |" in page
    assert "`python -m benchmarks.some`, 2026-11-24" in page


def test_machines_with_and_without_a_gpu_have_sections_of_their_own() -> None:
    plain = record({"benchmark": "some", "figure": 1})
    assert "## On a GPU" in page_of([plain])
    page = page_of([record({"benchmark": "some", "figure": 2}, gpu="Some GPU, 80 GiB"), plain])
    assert page.index("## On Some CPU, 2 cores, no GPU") < page.index("## On Some GPU, 80 GiB")
    assert "## On a GPU" not in page


def test_a_record_takes_the_place_of_an_older_one_of_its_kind(tmp_path: Path) -> None:
    for figure in (1, 2):
        record({"benchmark": "some", "figure": figure}).save(tmp_path)
    record({"benchmark": "some", "figure": 3}, gpu="Some GPU").save(tmp_path)
    assert [loaded.result["figure"] for loaded in load_all(tmp_path)] == [2, 3]


def test_every_benchmark_is_found_and_ends_with_its_own_json() -> None:
    assert {"report", "start", "training"} <= set(write.benchmarks())
    assert "write" not in write.benchmarks()
    line = json.dumps({"benchmark": "some"})
    assert write.result("some", line) == {"benchmark": "some"}
    for wrong in ("", "done", "[]", line):
        with pytest.raises(RuntimeError, match="benchmark other"):
            write.result("other", wrong)


def test_the_machine_is_named_with_what_a_figure_depends_on() -> None:
    assert {"cpu", "cores", "memory", "system"} <= machine.describe().keys()
    assert {"python", "torch", "redis", "celery", "redis-server"} <= machine.versions().keys()
