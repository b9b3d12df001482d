"""The command line as a process: on a terminal, interrupted, light, and where only the wheel is installed."""

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.epochcast.scripted import ScriptedGateway, job, message, says, stays
from tests.platform import Platform

ROOT = Path(__file__).parent.parent.parent
CLI = [sys.executable, "-P", "-m", "epochcast.cli"]
PAGES = {"/api/v1/training-jobs/42": [job()]}


def environment(**more: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return {**plain, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **more}


def on_a_terminal(*arguments: str, **more: str) -> tuple[str, int]:
    """What a command paints on a pseudo-terminal, and its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*CLI, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**more), start_new_session=True
    )
    os.close(theirs)
    painted = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 0.1)[0]:
            continue
        try:
            painted += os.read(ours, 65536)
        except OSError:  # EIO: the other side is closed
            break
    os.close(ours)
    return painted.decode(), process.wait(60)


def test_a_terminal_sees_bar_sparkline_eta_and_log_lines() -> None:
    epochs = [message(seq, metrics={"val_loss": 0.5}, eta_s=90) for seq in range(1, 9)]
    play = says(*epochs, message(9, "log"), message(10, "complete"))
    with ScriptedGateway(play, pages=PAGES) as gateway:
        painted, code = on_a_terminal("watch", "42", "--url", gateway.url)
    assert code == 0
    for part in ("job 42", "100%", "█", "▁", "line 9", "succeeded", "models download 7", "\x1b["):
        assert part in painted
    assert painted.count("\x1b[?25l") == painted.count("\x1b[?25h")  # the cursor is shown again


def test_a_fleet_is_drained_and_shown_on_a_terminal(platform: Platform) -> None:
    """Against the real platform: its one host, and one that never was."""
    painted, code = on_a_terminal("hosts", "--url", platform.url, COLUMNS="200")
    assert code == 0
    name = painted.splitlines()[1].split()[0]
    for part in ("heard", "training", " s ago", "ready"):
        assert part in painted
    try:
        painted, code = on_a_terminal("drain", name, "--url", platform.url)
        assert (code, f"{name} gets no new job" in painted) == (0, True)
        assert "draining" in on_a_terminal("hosts", "--url", platform.url, COLUMNS="200")[0]
    finally:
        painted, code = on_a_terminal("resume", name, "--url", platform.url)
    assert (code, "it is ready" in painted) == (0, True)
    painted, code = on_a_terminal("drain", "no-such-host", "--url", platform.url)
    assert code == 3
    assert "host no-such-host has never registered" in painted
    assert "Traceback" not in painted
    painted, code = on_a_terminal("attempts", "999999", "--url", platform.url)
    assert (code, "999999" in painted) == (3, True)


def test_no_color_is_honoured_on_a_terminal() -> None:
    with ScriptedGateway(says(message(1), message(2, "complete")), pages=PAGES) as gateway:
        coloured, _ = on_a_terminal("watch", "42", "--url", gateway.url)
        plain, _ = on_a_terminal("watch", "42", "--url", gateway.url, NO_COLOR="1")
    assert "\x1b[36m" in coloured
    assert "\x1b[3" not in plain.replace("\x1b[3m", "")


def test_ctrl_c_leaves_the_job_running_says_so_and_exits_130() -> None:
    with ScriptedGateway(stays(message(1)), pages=PAGES) as gateway:
        process = subprocess.Popen(
            [*CLI, "watch", "42", "--url", gateway.url],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith("running  epoch 1/10")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "job 42 keeps running" in err
    assert "Traceback" not in err


def test_a_closed_pipe_is_no_traceback() -> None:
    messages = [message(seq, "log", level="ERROR", message="x" * 4000) for seq in range(1, 200)]
    with ScriptedGateway(says(*messages, message(200, "complete")), pages=PAGES) as gateway:
        process = subprocess.Popen(
            [*CLI, "watch", "42", "--url", gateway.url],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(60)
        process.stderr.close()
    assert b"Traceback" not in errors


def test_importing_the_package_and_help_are_light() -> None:
    heavy = "{'torch', 'fastapi', 'celery', 'sqlalchemy', 'redis', 'httpx2', 'websockets', 'pydantic', 'plotext'}"
    for module in ("epochcast", "epochcast.cli"):
        code = f"import sys, {module}; found = {heavy} & set(sys.modules); assert not found, found"
        subprocess.run([sys.executable, "-P", "-c", code], env=environment(), check=True)


def test_every_commands_help_has_an_example() -> None:
    from typer.main import get_command

    from epochcast.cli import app

    commands = getattr(get_command(app), "commands")  # noqa: B009
    contract = "up submit watch list show logs stop restart models recipes hosts attempts metrics token doctor"
    assert set(commands) == {*contract.split(), "drain", "resume", "tensorboard"}
    for name, command in commands.items():
        below = getattr(command, "commands", {})
        for leaf in (command, *below.values()):
            examples = re.findall(r"epochcast ([a-z][^,]*)", leaf.epilog or "")
            assert any(example.startswith(name) for example in examples), f"{name} {leaf.name} has no example"
            for example in examples:
                assert parses(commands, shlex.split(example)), f"the help of {name} shows: epochcast {example}"
            options = {option for parameter in leaf.params for option in parameter.opts}
            assert "--json" in options or (name == "token" and leaf is command)  # it does nothing by itself


def parses(commands: dict[str, Any], words: list[str]) -> bool:
    command = commands[words.pop(0)]
    if words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    return command.make_context(command.name, words) is not None


# --- commands that run the server's modules


def test_token_create_runs_the_servers_module_and_not_one_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").write_text("raise SystemExit('a stranger was run')")
    made = subprocess.run(
        [*CLI, "token", "create", "--sub", "alice", "--scope", "jobs:read", "--days", "1", "--json"],
        cwd=tmp_path,
        env=environment(EPOCHCAST_SECRET="s" * 32),
        capture_output=True,
        text=True,
        check=True,
    )
    content = json.loads(made.stdout)
    assert content["token"].count(".") == 2
    assert (content["sub"], content["scopes"]) == ("alice", ["jobs:read"])


@pytest.mark.parametrize("command", ["up", "up --json", "token create --sub alice", "doctor"])
def test_from_the_wheel_alone_the_servers_commands_say_what_they_need(tmp_path: Path, command: str) -> None:
    shutil.copytree(ROOT / "epochcast", tmp_path / "site" / "epochcast", ignore=shutil.ignore_patterns("__pycache__"))
    ended = subprocess.run(
        [*CLI, *command.split()],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path / "site")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "run it from a checkout" in ended.stderr
    assert "Traceback" not in ended.stderr
