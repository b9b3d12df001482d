"""`epochcast up`: starts everything, stops it in order, survives its children, and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx2
import psutil
import pytest

from shared.data_folder import DataFolder
from tests.platform import CHECKOUT, Platform
from tests.waiting import wait_until


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Platform]:
    """A running platform of this test's own, without tokens."""
    with Platform(tmp_path, "--no-auth") as running:
        yield running


def descendants(platform: Platform) -> list[psutil.Process]:
    assert platform.process is not None
    return psutil.Process(platform.process.pid).children(recursive=True)


def child(platform: Platform, words: str) -> psutil.Process:
    """The platform's own child with `words` in its command line."""
    assert platform.process is not None
    own = psutil.Process(platform.process.pid).children()
    alive = [process for process in own if process.status() != psutil.STATUS_ZOMBIE]
    return next(process for process in alive if words in " ".join(process.cmdline()))


def is_ready(platform: Platform) -> bool:
    try:
        return bool(httpx2.get(f"{platform.url}/readyz", timeout=5).json()["status"] == "ok")
    except (httpx2.HTTPError, ValueError, KeyError):
        return False


def all_gone(processes: list[psutil.Process]) -> bool:
    return all(is_gone(process) for process in processes)


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # between the two questions
        return True


def refused(*arguments: str, **environment: str) -> str:
    """The one line with which `up` refuses to start."""
    ran = subprocess.run(
        [sys.executable, "-m", "shared.local", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode in (1, 2)
    assert "Traceback" not in ran.stderr
    return ran.stderr.splitlines()[-1]


def test_ready_line_names_the_page_and_the_state_files_lead_to_it(tmp_path: Path) -> None:
    with Platform(tmp_path) as up:
        # The first state file comes before the second, and both before what is said.
        wait_until(lambda: f"#token={up.token}" in up.output, f"the page's address\n{up.output}", timeout_s=30)
        *_, ready, address = (line for line in up.output.splitlines() if " | " not in line)
        assert ready == "epochcast is ready; Ctrl-C stops it"
        assert address == f"{up.url}/#token={up.token}"
        for path in (up.data_dir / "local.json", tmp_path / "state" / "epochcast" / "local.json"):
            assert path.stat().st_mode & 0o777 == 0o600
            assert json.loads(path.read_text())["url"] == up.url
        answer = httpx2.get(f"{up.url}/api/v1/hosts", headers={"Authorization": f"Bearer {up.token}"}, timeout=30)
        assert [host["status"] for host in answer.json()["items"]] == ["ready"]
        assert httpx2.get(f"{up.url}/api/v1/hosts", timeout=30).status_code == 401


def test_interrupt_stops_worker_then_gateway_then_redis_and_leaves_nothing(up: Platform) -> None:
    assert up.process is not None
    started = descendants(up)
    assert len(started) >= 3
    watched = {words: child(up, words) for words in ("-m worker", "-m api", "redis-server")}
    up.process.send_signal(signal.SIGINT)
    ends: list[str] = []

    def stopped() -> bool:
        ends.extend(words for words, process in watched.items() if words not in ends and all_gone([process]))
        return up.process is not None and up.process.poll() is not None

    wait_until(stopped, "the platform's end", timeout_s=60, every_s=0.001)
    assert ends == ["-m worker", "-m api", "redis-server"]
    assert up.process.returncode == 0
    assert all_gone(started)
    assert "killing it" not in up.output
    assert not (up.data_dir / "local.json").exists()
    assert not (up.folder / "state" / "epochcast" / "local.json").exists()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_stop_it_too(up: Platform, sign: signal.Signals) -> None:
    assert up.process is not None
    up.process.send_signal(sign)
    assert up.process.wait(60) == 0


def test_kill_minus_nine_leaves_nothing_running(up: Platform) -> None:
    assert up.process is not None
    started = descendants(up)
    up.process.kill()
    up.process.wait()
    wait_until(lambda: all_gone(started), "the end of every descendant", timeout_s=30)


def test_second_interrupt_does_not_wait_for_a_frozen_worker(up: Platform) -> None:
    assert up.process is not None
    frozen = child(up, "-m worker")
    frozen.suspend()
    up.process.send_signal(signal.SIGINT)
    wait_until(lambda: "stopping: " in up.output, "the first interrupt", timeout_s=30)

    def again() -> bool:
        assert up.process is not None
        up.process.send_signal(signal.SIGINT)
        return up.process.poll() is not None

    wait_until(again, "the end after further interrupts", timeout_s=60, every_s=0.3)
    assert up.process.wait() == 0
    assert is_gone(frozen)


def test_each_child_that_dies_is_started_again(up: Platform) -> None:
    for words, name in (("-m api", "gateway"), ("-m worker", "worker"), ("redis-server", "Redis")):
        dead = child(up, words)
        dead.kill()
        wait_until(partial(_says, up, f"{name} ended unexpectedly"), f"word of {name}'s end", timeout_s=30)
        wait_until(partial(_replaced, up, words, dead), f"a new {name}", timeout_s=60)
    wait_until(lambda: is_ready(up), "the platform to be ready again", timeout_s=60)


def _says(platform: Platform, words: str) -> bool:
    return words in platform.output


def _replaced(platform: Platform, words: str, dead: psutil.Process) -> bool:
    try:
        return child(platform, words) != dead
    except (StopIteration, psutil.NoSuchProcess):
        return False


def test_second_start_keeps_jobs_and_tokens(tmp_path: Path) -> None:
    with Platform(tmp_path) as first:
        headers = {"Authorization": f"Bearer {first.token}"}
        spec = {"recipe": "tabular-classifier", "total_epochs": 1}
        job = httpx2.post(f"{first.url}/api/v1/training-jobs", json=spec, headers=headers, timeout=30).json()
    with Platform(tmp_path) as second:
        again = httpx2.get(f"{second.url}/api/v1/training-jobs/{job['job_id']}", headers=headers, timeout=30)
        assert again.json()["job_id"] == job["job_id"]


def test_platform_uses_its_own_servers_whatever_the_environment_names(tmp_path: Path) -> None:
    elsewhere = {
        "EPOCHCAST_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/x",
        "EPOCHCAST_BROKER_URL": "redis://127.0.0.1:1/0",
        "EPOCHCAST_EVENTS_URL": "redis://127.0.0.1:1/0",
        "EPOCHCAST_ARTIFACTS_URL": "s3://nowhere/x",
        "EPOCHCAST_HOST_NAME": "my-laptop",
    }
    with Platform(tmp_path, "--no-auth", "--slots", "3", environment=elsewhere) as up:
        wait_until(lambda: is_ready(up), "its readiness", timeout_s=30)
        (host,) = httpx2.get(f"{up.url}/api/v1/hosts", timeout=30).json()["items"]
        assert (host["name"], host["slots"]["total"]) == ("my-laptop", 3)


def test_data_folder_in_use_is_refused(tmp_path: Path) -> None:
    with DataFolder(tmp_path).lock():
        assert f"another `epochcast up` (pid {os.getpid()}) uses {tmp_path}" in refused("--data-dir", str(tmp_path))


def test_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("--port", str(port), "--data-dir", str(tmp_path))
    assert line.startswith(f"epochcast up: port {port} on 127.0.0.1 can't be used")
    assert "--port 0" in line
    assert not (tmp_path / "redis").exists()


@pytest.mark.parametrize("folder", ["/proc/epochcast", "/dev/null"])
def test_unwritable_data_folder_is_refused(folder: str) -> None:
    assert refused("--data-dir", folder).startswith(f"epochcast up: the data folder {folder} can't be written")


def test_damaged_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "epochcast.db").write_text("this is no database" * 100)
    line = refused("--port", "0", "--data-dir", str(tmp_path))
    assert f"the database {tmp_path / 'epochcast.db'} can't be used (file is not a database)" in line


@pytest.mark.parametrize(
    "arguments", [["--port", "x"], ["--port", "70000"], ["--port", "-1"], ["--slots", "x"], ["--nonsense"], ["extra"]]
)
def test_wrong_arguments_are_a_usage_error(arguments: list[str]) -> None:
    assert refused(*arguments).startswith("epochcast up: error: ")


def test_wrong_setting_is_named(tmp_path: Path) -> None:
    line = refused("--data-dir", str(tmp_path), EPOCHCAST_LEASE_S="1")
    assert "EPOCHCAST_LICENCE_S + EPOCHCAST_KILL_S must be less than EPOCHCAST_LEASE_S" in line
