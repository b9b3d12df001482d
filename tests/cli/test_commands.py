"""Each command: what it prints, what it sends, and the exit code that says how it went."""

import json
from pathlib import Path
from typing import Any

import pytest

from epochcast.cli import run
from tests.epochcast.http_server import Answer, Call, serving
from tests.epochcast.scripted import ScriptedGateway, job, message, says

HOST = {
    "name": "gpu-3",
    "status": "ready",
    "slots": {"total": 2, "used": 1},
    "cpu": {"cores": 8, "percent": 12.5},
    "memory": {"total_gib": 64.0, "used_gib": 3.5},
    "gpus": [
        {
            "index": 0,
            "name": "H200",
            "memory": {"total_gib": 139.8, "used_gib": 1.0},
            "job_id": 42,
            "quarantined": False,
        }
    ],
    "jobs": [42, 43],
    "training": [
        {"job_id": 42, "reported_at": "2025-01-07T10:15:00Z", "silent_s": 4.2, "is_stalled": False},
        {"job_id": 43, "reported_at": None, "silent_s": 725.0, "is_stalled": True},
    ],
    "heartbeat_age_s": 3.1,
}
RECIPE = {
    "name": "image-classifier",
    "description": "Digits and such.",
    "default_epochs": 20,
    "hyperparameters": {
        "properties": {
            "lr": {"type": "number", "default": 0.003, "description": "Peak learning rate"},
            "data_dir": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "dataset": {"enum": ["digits", "npz"], "default": "digits"},
        }
    },
}
MODEL = {
    "model_id": 7,
    "job_id": 42,
    "name": "digits",
    "metrics": {"val_loss": 0.1},
    "bytes": 2**20,
    "sha256": "ab",
    "created_at": "2025-01-07T10:15:00Z",
}
ATTEMPT = {
    "number": 1,
    "host": "gpu-3",
    "gpus": [],
    "members": [{"host": "gpu-3", "gpus": []}, {"host": "gpu-4", "gpus": []}],
    "started_at": "2025-01-07T10:15:00Z",
    "ended_at": "2025-01-07T10:17:05Z",
}
PROBLEM = {
    "title": "Unprocessable Content",
    "status": 422,
    "detail": "hyperparameters.lr: must be greater than 0 (and 1 more, see errors)",
    "errors": [
        {"field": "hyperparameters.lr", "message": "must be greater than 0"},
        {"field": "seed", "message": "must be a number"},
    ],
}
JOB = "/api/v1/training-jobs/42"

PAGES: dict[str, Any] = {
    "/api/v1/training-jobs": {"items": [job(), job("failed", job_id=41)], "next_cursor": None},
    JOB: job(),
    f"{JOB}/attempts": {"items": [ATTEMPT]},
    f"{JOB}/metrics": {"epoch": [1, 2], "train_loss": [1.0, None], "val_accuracy": [0.1, 0.2]},
    f"{JOB}/logs": {"items": [message(2, "log"), message(3, "log", level="WARNING", message="hot \x1b[31mred")]},
    "/api/v1/models": {"items": [MODEL], "next_cursor": None},
    "/api/v1/recipes": {"items": [RECIPE]},
    "/api/v1/recipes/image-classifier": RECIPE,
    "/api/v1/hosts": {"items": [HOST]},
}


def page(call: Call) -> Answer:
    path, _, query = call.path.partition("?")
    if path.endswith("/logs") and "after=1-3" in query:
        return Answer(200, {"items": []})
    return Answer(200, PAGES[path]) if path in PAGES else Answer(404, {"title": "Not Found", "detail": f"no {path}"})


READS = [
    (["list"], ["digits", "running", "failed", "alice"]),
    (["show", "42"], ["digits", "running", "1/10", "image-classifier"]),
    (["attempts", "42"], ["gpu-3, gpu-4", "2025-01-07 10:15:00", "2 min 5 s"]),
    (["metrics", "42"], ["train_loss", "0.2", "-"]),
    (["metrics", "42", "--plot"], ["job 42: train_loss", "job 42: val_accuracy"]),
    (["logs", "42"], ["2025-01-07 10:15:00 INFO     line 2", "WARNING  hot red"]),
    (["models"], ["digits", "val_loss 0.1"]),
    (["recipes"], ["image-classifier", "Digits and such."]),
    (["recipes", "image-classifier"], ["number", "string or null", "digits | npz", "Peak learning rate"]),
    (["hosts"], ["gpu-3", "1/2", "8 cores, 12 %", "0: H200 1/139.8 GiB, job 42"]),
    (["hosts"], ["3 s ago", "42: 4 s ago; 43: stalled, silent for 12 min 5 s"]),
]


@pytest.mark.parametrize(("command", "parts"), READS, ids=lambda value: " ".join(value))
def test_reading_commands_show_what_the_server_says(
    command: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with serving(page) as server:
        assert run([*command, "--url", server.url]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    for part in parts:
        assert part in out


@pytest.mark.parametrize("command", [command for command, _ in READS if "--plot" not in command], ids=" ".join)
def test_json_is_all_that_json_prints(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(page) as server:
        assert run([*command, "--json", "--url", server.url]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(json.loads(line) for line in out.splitlines())


def test_show_json_is_the_job_as_the_contract_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(page) as server:
        run(["show", "42", "--json", "--url", server.url])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["job_id"], shown["created_at"], shown["spec"]["seed"]) == (42, "2025-01-07T10:14:00Z", 0)


def test_drain_and_resume_say_what_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(call: Call) -> Answer:
        return Answer(200, HOST | {"status": "draining" if "drain" in call.path else "ready"})

    with serving(answer) as server:
        assert run(["drain", "gpu-3", "--url", server.url]) == 0
        assert run(["resume", "gpu-3", "--url", server.url]) == 0
        assert run(["drain", "gpu-3", "--json", "--url", server.url]) == 0
    assert [(call.method, call.path) for call in server.calls[:2]] == [
        ("POST", "/api/v1/hosts/gpu-3/drain"),
        ("POST", "/api/v1/hosts/gpu-3/resume"),
    ]
    drained, resumed, as_json = capsys.readouterr().out.splitlines()
    assert drained == "gpu-3 gets no new job; it still has jobs 42, 43; undo it with: epochcast resume gpu-3"
    assert resumed == "gpu-3 may take jobs again; it is ready"
    assert json.loads(as_json)["status"] == "draining"


def test_list_sends_its_filters(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(page) as server:
        filters = ["--status", "running", "--tag", "demo", "--recipe", "image-classifier", "--limit", "3"]
        assert run(["list", *filters, "--url", server.url]) == 0
    assert server.calls[0].path.endswith("?status=running&tag=demo&recipe=image-classifier&limit=3")


def test_an_empty_list_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda _: Answer(200, {"items": [], "next_cursor": None})) as server:
        assert run(["list", "--url", server.url]) == 0
    assert "epochcast submit" in capsys.readouterr().out


def test_submit_sends_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-p", "lr=0.01", "-p", "dataset=digits", "-p", "layers=[1,2]", "-p", "note=NaN", "--epochs", "5"]
    more = ["--name", "x", "--priority", "3", "--gpus", "1", "--tag", "a", "--tag", "b", "--seed", "7"]
    more += ["--on-oom", "shrink", "--stall-timeout", "90", "--fail-on-non-finite"]
    with serving(lambda _: Answer(201, job("queued"))) as server:
        key = ["--idempotency-key", "k1"]
        assert run(["submit", "--recipe", "image-classifier", *options, *more, *key, "--url", server.url]) == 0
    (call,) = server.calls
    assert call.headers["Idempotency-Key"] == "k1"
    assert json.loads(call.body) == {
        "recipe": "image-classifier",
        "hyperparameters": {"lr": 0.01, "dataset": "digits", "layers": [1, 2], "note": "NaN"},
        "total_epochs": 5,
        "name": "x",
        "priority": 3,
        "resources": {"gpus": 1},
        "tags": ["a", "b"],
        "seed": 7,
        "on_oom": "shrink",
        "stall_timeout_s": 90,
        "fail_on_non_finite": True,
    }
    assert "job 42" in capsys.readouterr().out


def test_a_dry_run_submits_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"recipe": "image-classifier", "hyperparameters": {"lr": 0.01}, "total_epochs": 20}
    plan = {"spec": spec, "hosts_that_fit": ["gpu-3"], "queue_position": 1, "pending_reason": None}
    plan["expected_start_at"] = "2025-01-07T10:15:00Z"
    with serving(lambda _: Answer(200, plan)) as server:
        assert run(["submit", "--recipe", "image-classifier", "--dry-run", "--url", server.url]) == 0
    assert server.calls[0].path.endswith("?dry_run=true")
    out = capsys.readouterr().out
    assert "gpu-3" in out
    assert "2025-01-07 10:15 UTC (expected)" in out


def test_a_queued_job_shows_when_it_is_expected_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = job("queued", pending_reason="needs 1 GPU", queue_position=3, expected_start_at="2025-01-07T10:15:00Z")
    with serving(lambda _: Answer(200, waiting)) as server:
        assert run(["show", "42", "--url", server.url]) == 0
    assert "2025-01-07 10:15 UTC (expected)" in capsys.readouterr().out


USAGE = [
    (["submit", "no-such.py"], "no-such.py: there is no such file"),
    (["submit", "README.md"], "README.md"),
    (["submit", "--recipe", "r", "train.py"], "not both"),
    (["submit", "--recipe", "r", "--env", "A=1"], "belong to a script"),
    (["submit"], "--recipe"),
    (["submit", "--recipe", "r", "-p", "lr"], "NAME=VALUE"),
    (["submit", "--recipe", "r", "-p", "a=1", "-p", "a=2"], "given twice"),
    (["submit", "--recipe", "r", "--epochs", "0"], "total_epochs"),
    (["submit", "--recipe", "r", "--on-oom", "explode"], "on_oom"),
    (["list", "--status", "sleeping"], "queued, running"),
    (["logs", "42", "--level", "loud"], "DEBUG, INFO"),
    (["drain", "gpu/3"], "'gpu/3' is no host's name"),
    (["resume"], "HOST"),
    (["show", "zero"], "JOB"),
    (["show", "0"], "JOB"),
    (["show", str(2**63)], "JOB"),
    (["fly"], "fly"),
    (["list", "--url", "gpu-3"], "is not a server's address"),
]


@pytest.mark.parametrize(
    ("command", "part"), USAGE, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_wrong_usage_exits_2_and_says_the_way_out(
    command: list[str], part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert run(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err


def test_a_refusal_exits_3_with_the_servers_words_for_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda _: Answer(422, PROBLEM)) as server:
        assert run(["submit", "--recipe", "image-classifier", "--json", "--url", server.url]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"epochcast: {PROBLEM['detail']}\n  seed: must be a number\n"


def test_an_unreachable_server_exits_4(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--url", "http://127.0.0.1:1"]) == 4
    assert "http://127.0.0.1:1 can't be reached" in capsys.readouterr().err


# --- watch


@pytest.mark.parametrize(
    ("last", "code", "word"),
    [
        (message(3, "complete"), 0, "job 42 succeeded"),
        (message(3, "error"), 1, "job 42 failed: CUDA out of memory"),
        (message(3, status="stopped"), 1, "job 42 stopped"),
    ],
)
def test_watch_prints_a_line_an_epoch_and_exits_with_the_outcome(
    last: dict[str, Any], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    play = says(message(1, metrics={"val_loss": 0.5}, eta_s=90), message(2, "log", level="WARNING"), last)
    with ScriptedGateway(play, pages={JOB: [job()]}) as gateway:
        assert run(["watch", "42", "--url", gateway.url]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["running  epoch 1/10  10%  val_loss 0.5  ETA 1 min 30 s", "WARNING: line 2"]
    assert any(line.startswith(word) for line in lines[2:])


def test_watch_tells_about_lost_connections(capsys: pytest.CaptureFixture[str]) -> None:
    plays = says(message(1), close=1012, reason="service restart"), says(message(2, "complete"))
    with ScriptedGateway(*plays, pages={JOB: [job()]}) as gateway:
        assert run(["watch", "42", "--url", gateway.url]) == 0
    assert "service restart; reconnecting in" in capsys.readouterr().out


def test_watch_json_prints_each_message_as_it_was_sent(capsys: pytest.CaptureFixture[str]) -> None:
    messages = [message(1), message(2, "log"), message(3, "complete")]
    with ScriptedGateway(says(*messages), pages={JOB: [job()]}) as gateway:
        assert run(["watch", "42", "--json", "--url", gateway.url]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(sent.items() <= line.items() for sent, line in zip(messages, lines, strict=True))


def test_watch_after_the_end_exits_with_the_outcome_of_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedGateway(says(), pages={JOB: [job("failed", error_message="boom")]}) as gateway:
        assert run(["watch", "42", "--after", "1-9", "--url", gateway.url]) == 1


def test_watch_of_an_unknown_job_exits_3(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedGateway(says(close=1008, reason="job not found")) as gateway:
        assert run(["watch", "41", "--url", gateway.url]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_logs_follow_prints_history_and_news_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    plays = (
        says(message(1, "log", message="old", level="DEBUG"), message(2, "log"), close=1012),
        says(message(3, "log", level="ERROR"), message(4, "complete")),
    )
    with ScriptedGateway(*plays) as gateway:
        assert run(["logs", "42", "-f", "--level", "info", "--url", gateway.url]) == 0
        assert gateway.afters() == ["0-0", "1-2"]
    assert [line.split(maxsplit=3)[2:] for line in capsys.readouterr().out.splitlines()] == [
        ["INFO", "line 2"],
        ["ERROR", "line 3"],
    ]
