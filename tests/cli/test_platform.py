"""The command line and the client against the real platform: from `up` to a model file, and every way a job ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import epochcast
from epochcast.cli import run
from epochcast.errors import Conflict, Invalid, JobFailed, NotAuthenticated, NotFound, UsageError
from epochcast.jobs import Status
from tests.platform import CHECKOUT, Platform
from tests.waiting import wait_until

QUICK = ["submit", "--recipe", "image-classifier", "-p", "model=mlp", "-p", "width=1"]


def test_submit_watch_and_download_end_with_a_model_that_loads(
    platform: Platform, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run([*QUICK, "--epochs", "3", "--tag", "cli", "--watch", "--json", "--url", platform.url]) == 0
    submitted, *messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert messages[-1]["type"] == "complete"
    assert [each["id"] for each in messages] == sorted({each["id"] for each in messages}, key=_order)
    model_id = messages[-1]["model_id"]
    target = tmp_path / "digits.safetensors"
    assert run(["models", "download", str(model_id), "-o", str(target), "--url", platform.url]) == 0
    header = target.read_bytes()[8 : 8 + int.from_bytes(target.read_bytes()[:8], "little")]
    assert json.loads(header)
    with epochcast.Client(platform.url) as client:
        job_id = submitted["job_id"]
        assert client.job(job_id).result().model_id == model_id
        assert client.metrics(job_id)["epoch"] == [1, 2, 3]
        assert [event.id for event in client.events(job_id)] == [event.id for event in client.watch(job_id, after="0")]
        assert [attempt.outcome for attempt in client.attempts(job_id)] == ["succeeded"]
        assert job_id in [job.job_id for job in client.jobs(tag="cli", status=Status.SUCCEEDED)]
        assert client.health().status == "ok"
        assert client.metrics_of([job_id]) == {job_id: client.metrics(job_id)}
        kept = {artifact.kind: artifact for artifact in client.artifacts(job_id)}
        path = client.download_artifact(job_id, kept["checkpoint"].artifact_id, tmp_path)
        assert (path.name, path.stat().st_size) == (
            f"job-{job_id}-checkpoint-{kept['checkpoint'].artifact_id}.pt",
            kept["checkpoint"].bytes,
        )
        with pytest.raises(UsageError, match="has no artifact 999999"):
            client.download_artifact(job_id, 999_999)
        with pytest.raises(NotFound):
            client.artifacts(999_999)
        with pytest.raises(Conflict):
            client.stop(job_id)
    for command in ("show", "logs", "metrics", "attempts", "watch"):
        assert run([command, str(job_id), "--url", platform.url]) == 0
    for command in ("list", "models", "recipes", "hosts"):
        assert run([command, "--url", platform.url]) == 0


def _order(event_id: str) -> tuple[int, int]:
    generation, seq = event_id.split("-")
    return int(generation), int(seq)


def test_a_stopped_job_ends_the_watch_and_goes_on_after_a_restart(platform: Platform) -> None:
    with epochcast.Client(platform.url) as client:
        job = client.submit(recipe="image-classifier", hyperparameters={"model": "mlp", "width": 1}, total_epochs=10**6)
        statuses = []
        for message in job.watch():
            statuses.append(message.status)
            if message.current_epoch >= 2:
                job.stop()
        assert statuses[-1] is Status.STOPPED
        with pytest.raises(JobFailed, match="stopped"):
            job.result()
        assert run(["watch", str(job.job_id), "--url", platform.url]) == 1
        assert client.restart(job.job_id).status is Status.QUEUED
        epochs = []
        for message in job.watch():
            if message.type == "progress" and message.status is Status.RUNNING and message.current_epoch > 2:
                epochs.append(message.current_epoch)
                job.stop()
        assert epochs
        assert len(client.attempts(job.job_id)) == 2


def test_a_wrong_hyperparameter_is_named_by_the_server(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    with epochcast.Client(platform.url) as client, pytest.raises(Invalid, match=r"hyperparameters\.lr"):
        client.submit(recipe="image-classifier", hyperparameters={"lr": -1})
    assert run([*QUICK, "-p", "lr=fast", "--url", platform.url]) == 3
    assert "hyperparameters.lr" in capsys.readouterr().err


def test_a_wrong_token_is_refused_by_rest_and_socket_alike(platform_with_auth: Platform) -> None:
    with epochcast.Client(platform_with_auth.url, "wrong") as client:
        with pytest.raises(NotAuthenticated):
            client.jobs()
        with pytest.raises(NotAuthenticated):
            list(client.watch(1))
    with epochcast.Client(platform_with_auth.url, platform_with_auth.token) as client:
        assert isinstance(client.jobs(), list)


def test_up_prints_one_line_of_json_is_found_by_the_others_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "XDG_STATE_HOME": str(tmp_path / "state")}
    cli = [sys.executable, "-P", "-m", "epochcast.cli"]
    with (tmp_path / "log").open("wb") as log:
        up = subprocess.Popen(
            [*cli, "up", "--port", "0", "--json"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=log
        )
    assert up.stdout is not None
    line = up.stdout.readline()
    assert line, (tmp_path / "log").read_text()
    ready = json.loads(line)
    assert ready["pid"] == up.pid
    assert ready["token"]
    hosts = subprocess.run([*cli, "hosts", "--json"], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert [host["status"] for host in json.loads(hosts.stdout)] == ["ready"]
    up.send_signal(signal.SIGINT)
    assert up.stdout.read() == b""
    up.stdout.close()
    assert up.wait(60) == 0
    wait_until(lambda: not (tmp_path / ".epochcast" / "local.json").exists(), "the removal of local.json")
    gone = subprocess.run([*cli, "list"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert gone.returncode == 4
