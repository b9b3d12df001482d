"""Finding the server: arguments before environment before the file of a platform that runs here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from epochcast.connection import Connection, find
from epochcast.errors import Unreachable, UsageError


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment whose state folder is temporary; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def write_local(path: Path, *, url: str = "http://localhost:8000", token: str | None = "local", pid: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"url": url, "token": token, "pid": pid or os.getpid()}))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_arguments_win_over_environment_and_environment_over_the_file(state: dict[str, str]) -> None:
    write_local(Path(state["XDG_STATE_HOME"], "epochcast", "local.json"))
    assert find(environment=state) == Connection("http://localhost:8000", "local")
    state |= {"EPOCHCAST_URL": "https://gpu.example/", "EPOCHCAST_TOKEN": "environment"}
    assert find(environment=state) == Connection("https://gpu.example", "environment")
    assert find("http://other:1/x/", "argument", state) == Connection("http://other:1/x", "argument")


def test_the_data_folder_here_comes_before_the_users_state_folder(state: dict[str, str]) -> None:
    write_local(Path(state["XDG_STATE_HOME"], "epochcast", "local.json"), url="http://localhost:1")
    write_local(Path(".epochcast/local.json"), url="http://localhost:2")
    assert find(environment=state).url == "http://localhost:2"


def test_the_files_token_goes_to_its_own_server_only(state: dict[str, str]) -> None:
    write_local(Path(".epochcast/local.json"))
    assert find("http://elsewhere:8000", environment=state).token is None
    assert find("http://127.0.0.1:8000", environment=state).token == "local"
    assert find("http://127.0.0.1:8001", environment=state).token is None


def test_a_stale_file_is_named_with_the_way_out(state: dict[str, str]) -> None:
    pid = dead_pid()
    write_local(Path(".epochcast/local.json"), pid=pid)
    with pytest.raises(Unreachable, match=rf"\.epochcast/local\.json \(process {pid}\) no longer runs.*epochcast up"):
        find(environment=state)


def test_a_stale_file_does_not_hide_one_that_is_alive(state: dict[str, str]) -> None:
    write_local(Path(".epochcast/local.json"), pid=dead_pid())
    write_local(Path(state["XDG_STATE_HOME"], "epochcast", "local.json"), url="http://localhost:2")
    assert find(environment=state).url == "http://localhost:2"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": "http://localhost:1"}', '{"url": 3, "pid": 1}'])
def test_a_broken_file_is_named(state: dict[str, str], text: str) -> None:
    Path(".epochcast").mkdir()
    Path(".epochcast/local.json").write_text(text)
    with pytest.raises(Unreachable, match=r"\.epochcast/local\.json can't be read"):
        find(environment=state)
    assert find("http://localhost:1", environment=state).token is None


def test_no_server_known_says_how_to_get_one(state: dict[str, str]) -> None:
    with pytest.raises(Unreachable, match="epochcast up"):
        find(environment=state)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ws://localhost", "http://", "http://host:99999", "http://u:p@host", "http://host/?a=b"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not a server's address"):
        find(url)


def test_a_token_with_a_line_break_is_refused_without_being_shown(state: dict[str, str]) -> None:
    with pytest.raises(UsageError) as raised:
        find("http://localhost:1", "secret\ntoken", state)
    assert "secret" not in str(raised.value)


def test_a_connection_never_shows_its_token() -> None:
    assert "secret" not in repr(Connection("http://localhost:1", "secret"))
