"""Live displays on a real pseudo-terminal: the tables of `--watch`, the GPU line of a watch, Ctrl-C, and Tab."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from epochcast.answers import Host
from epochcast.cli.options import complete_job
from epochcast.cli.places import lines
from tests.cli.pseudo_terminal import PseudoTerminal
from tests.cli.test_commands import HOST
from tests.cli.test_terminal import CLI, environment
from tests.epochcast.http_server import Answer, Call, serving
from tests.epochcast.scripted import ScriptedGateway, job, message, stays

BUSY = HOST | {"gpus": [HOST["gpus"][0] | {"utilisation_percent": 97}]}  # type: ignore[index]


def command(*arguments: str, columns: int = 160, **more: str) -> PseudoTerminal:
    return PseudoTerminal([*CLI, *arguments], environment(COLUMNS=str(columns), **more), columns)


def test_list_watch_repaints_the_table_in_place_until_ctrl_c() -> None:
    losses = iter([0.75, 0.5])

    def answer(_: Call) -> Answer:
        running = job(current_loss=next(losses, 0.25), progress=0.5, eta_s=90)
        return Answer(200, {"items": [running, job("failed", job_id=41)], "next_cursor": None})

    with serving(answer) as server, command("list", "--watch", "--status", "running", "--url", server.url) as terminal:
        terminal.until("0.25")
        terminal.press("\x03")
        assert terminal.ended() == 130
    for part in ("0.75", "0.5", "1 min 30 s", "failed", "━"):
        assert part in terminal.text
    assert "\x1b[1A" in terminal.painted  # up, and over the lines before
    assert "Traceback" not in terminal.text
    assert terminal.painted.count("\x1b[?25l") == terminal.painted.count("\x1b[?25h")
    assert all("status=running" in call.path for call in server.calls)


def test_on_a_small_terminal_a_table_folds_names_and_never_a_word_or_a_number() -> None:
    long = job(
        "succeeded", name=30 * "n", current_epoch=100_000, total_epochs=100_000, created_at="2025-01-01T00:00:00Z"
    )
    body = {"items": [job(eta_s=338), long], "next_cursor": None}
    with serving(lambda _: Answer(200, body)) as server:
        with command("list", "--watch", "--url", server.url, columns=80) as terminal:
            terminal.until("100000/100000")
            terminal.press("\x03")
            terminal.ended()
        for part in ("progress", "running", "succeeded", "5 min 38 s", 10 * "n"):
            assert part in terminal.text
        with command("list", "--url", server.url, columns=80) as listing:
            assert listing.ended() == 0
        for part in ("running", "succeeded", "100000/100000", " d ago"):
            assert part in listing.text


def test_hosts_watch_waits_for_a_server_that_is_away_and_says_so() -> None:
    answers = iter([Answer(200, {"items": [HOST]})] + 9 * [Answer(cut_after=0)])

    def answer(_: Call) -> Answer:
        return next(answers, Answer(200, {"items": [HOST | {"name": "gpu-4"}]}))

    with serving(answer) as server, command("hosts", "--watch", "--url", server.url) as terminal:
        terminal.until("broke")
        terminal.until("gpu-4")
        terminal.press("\x03")
        assert terminal.ended() == 130
    assert "what is above may be old" in terminal.text


def test_as_json_it_waits_for_a_server_that_is_away_too() -> None:
    answers = iter([Answer(200, {"items": [HOST]})] + 9 * [Answer(cut_after=0)])

    def answer(_: Call) -> Answer:
        return next(answers, Answer(200, {"items": [HOST | {"name": "gpu-4"}]}))

    with serving(answer) as server:
        following = subprocess.Popen(
            [*CLI, "hosts", "--watch", "--json", "--url", server.url],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert following.stdout is not None
        shown = [json.loads(following.stdout.readline())[0]["name"] for _ in range(2)]
        following.terminate()
        said = following.communicate(timeout=60)[1]
    assert shown == [HOST["name"], "gpu-4"]
    assert said.count("what was printed last may be old") == 1


def test_what_a_server_refuses_ends_a_live_table_with_its_words() -> None:
    answers = iter([Answer(200, {"items": [HOST]})])
    gone = Answer(401, {"title": "Unauthorized", "status": 401, "detail": "token expired"})
    with (
        serving(lambda _: next(answers, gone)) as server,
        command("hosts", "--watch", "--url", server.url) as terminal,
    ):
        assert terminal.ended() == 3
    assert "token expired" in terminal.text


def test_a_live_table_needs_a_terminal_and_as_json_is_a_line_at_each_change() -> None:
    names = iter(["gpu-1", "gpu-1", "gpu-2"])

    def answer(_: Call) -> Answer:
        return Answer(200, {"items": [HOST | {"name": next(names, "gpu-3")}]})

    def run(*arguments: str, **more: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*CLI, "hosts", "--watch", *arguments], env=environment(), stdout=subprocess.PIPE, text=True, **more
        )

    with serving(answer) as server:
        refused = run("--url", server.url, stderr=subprocess.PIPE)
        assert "needs a terminal" in refused.communicate(timeout=60)[1]
        assert refused.returncode == 2
        following = run("--json", "--url", server.url)
        assert following.stdout is not None
        shown = [json.loads(following.stdout.readline())[0]["name"] for _ in range(3)]
        following.terminate()
        following.communicate(timeout=60)
    assert shown == ["gpu-1", "gpu-2", "gpu-3"]


def test_a_watch_shows_the_jobs_gpus_and_ctrl_c_leaves_it_running() -> None:
    pages = {"/api/v1/training-jobs/42": [job()], "/api/v1/hosts": [{"items": [BUSY]}]}
    with (
        ScriptedGateway(stays(message(1)), pages=pages) as gateway,
        command("watch", "42", "--url", gateway.url) as terminal,
    ):
        terminal.until("GPU 0 on gpu-3: H200, 97 %, 1/139.8 GiB")
        terminal.press("\x03")
        assert terminal.ended() == 130
    assert "job 42 keeps running; watch it again with: epochcast watch 42" in terminal.text
    assert "Traceback" not in terminal.text


def test_a_watch_of_a_queued_job_says_why_it_waits_as_soon_as_that_is_known() -> None:
    """When it was submitted nobody had looked at the queue yet, and no message says what they found."""
    reasons = [None, "needs 8 GPUs", "needs 8 GPUs; the largest free is 2 (gpu-3)"]
    pages = {"/api/v1/training-jobs/42": [job("queued", pending_reason=reason) for reason in reasons]}
    waiting = stays(message(1, status="queued", current_epoch=0, progress=0.0, current_loss=None))
    with ScriptedGateway(waiting, pages=pages) as gateway:
        with command("watch", "42", "--url", gateway.url) as terminal:
            terminal.until("the largest free is 2 (gpu-3)")
            terminal.press("\x03")
            assert terminal.ended() == 130
        with subprocess.Popen(
            [*CLI, "watch", "42", "--url", gateway.url], env=environment(), stdout=subprocess.PIPE, text=True
        ) as piped:
            assert piped.stdout is not None
            assert any("the largest free is 2" in line for line in piped.stdout)
            piped.terminate()


def test_following_a_log_leaves_the_job_running_and_says_so() -> None:
    pages = {"/api/v1/training-jobs/42": [job()]}
    with (
        ScriptedGateway(stays(message(1, "log")), pages=pages) as gateway,
        command("logs", "42", "--follow", "--url", gateway.url) as terminal,
    ):
        terminal.until("line 1")
        terminal.press("\x03")
        assert terminal.ended() == 130
    assert "job 42 keeps running" in terminal.text


def test_a_watch_goes_on_where_the_fleet_is_not_told() -> None:
    pages: dict[str, list[Any]] = {"/api/v1/training-jobs/42": [job()], "/api/v1/hosts": [404]}
    with (
        ScriptedGateway(stays(message(1)), pages=pages) as gateway,
        command("watch", "42", "--url", gateway.url) as terminal,
    ):
        terminal.until("epoch 1/10")
        terminal.press("\x03")
        assert terminal.ended() == 130


def test_a_job_without_gpus_is_shown_with_its_hosts_and_many_gpus_in_few_lines() -> None:
    host = Host.model_validate(HOST)
    assert lines([host], 43) == ("on gpu-3: 8 cores, 12 %, memory 3.5/64 GiB",)
    assert lines([host], 44) == ()
    card = host.gpus[0]
    many = host.model_copy(update={"gpus": [card.model_copy(update={"index": index}) for index in range(8)]})
    assert lines([many], 42)[-1] == "and 4 more"


# --- completion


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell with `epochcast` on its path and a home of its own."""
    script = tmp_path / "bin" / "epochcast"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m epochcast.cli "$@"\n')
    script.chmod(0o755)
    found = environment(HOME=str(tmp_path), PS1="$ ", INPUTRC="/dev/null")
    return found | {"PATH": f"{script.parent}:{found['PATH']}"}


def test_tab_completes_commands_options_and_jobs_in_bash(shell: dict[str, str], tmp_path: Path) -> None:
    """As docs/command-line.md says: installed once, then in every new shell."""
    subprocess.run(["bash", "-c", "epochcast --install-completion; true"], env=shell, check=True, capture_output=True)
    (tmp_path / "rc").write_text(f"PS1='$ '\n. {tmp_path}/.bash_completions/epochcast.sh\n")
    page = {"items": [job(), job("failed", job_id=4711)], "next_cursor": None}
    with serving(lambda _: Answer(200, page)) as server:
        bash = ["bash", "--noprofile", "--rcfile", str(tmp_path / "rc"), "-i"]
        with PseudoTerminal(bash, shell | {"EPOCHCAST_URL": server.url}) as terminal:
            terminal.until("$ ")
            terminal.press("epochcast att\t")
            terminal.until("attempts ")
            terminal.press("47\t")
            terminal.until("11 ")
            terminal.press("--js\t")
            terminal.until("on ")
            terminal.press("\x15exit\n")
            terminal.ended()


def test_where_no_server_answers_tab_offers_no_job_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EPOCHCAST_URL", "http://127.0.0.1:1")
    assert complete_job("4") == []
    assert capsys.readouterr() == ("", "")
