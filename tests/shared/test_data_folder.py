"""The data folder of `up`: one user at a time, private, and its state files removed only by their writer."""

import json
import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from shared.data_folder import DataFolder, DataFolderInUse, DataFolderUnusable, StateFiles, read_secret, state_home


def test_second_user_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with DataFolder(tmp_path).lock(), pytest.raises(DataFolderInUse, match=f"pid {os.getpid()}.*--data-dir"):
        DataFolder(tmp_path).lock()


def test_folder_is_free_again_after_its_user(tmp_path: Path) -> None:
    DataFolder(tmp_path).lock().close()
    DataFolder(tmp_path).lock().close()


@pytest.mark.parametrize("path", ["/proc/epochcast", "/dev/null/epochcast", "/dev/null"])
def test_folder_that_cannot_be_written_is_named(path: str) -> None:
    with pytest.raises(DataFolderUnusable, match=f"{path}.*--data-dir"):
        DataFolder(Path(path)).lock()


def test_secret_is_made_once_long_enough_and_private(tmp_path: Path) -> None:
    assert read_secret(tmp_path) is None
    made = DataFolder(tmp_path).secret()
    assert len(made) >= 32
    assert DataFolder(tmp_path).secret() == made == read_secret(tmp_path)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_urls_survive_odd_characters_in_the_path(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "a b?c%20#d")
    assert sa.make_url(folder.database_url).database == str(folder.path / "epochcast.db")
    assert folder.artifacts_url.endswith("a%20b%3Fc%2520%23d/artifacts")


def test_state_file_is_private_and_removed_by_its_writer_only(tmp_path: Path) -> None:
    first, second = tmp_path / "one" / "local.json", tmp_path / "two" / "local.json"
    files = StateFiles((first, second))
    files.write({"url": "http://localhost:1", "token": "t", "pid": 1})
    assert first.stat().st_mode & 0o777 == 0o600
    second.write_text(json.dumps({"url": "http://localhost:2", "token": "t", "pid": 2}))
    files.remove_own(1)
    assert not first.exists()
    assert second.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_damaged_state_file_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "local.json").write_text(content)
    StateFiles((tmp_path / "local.json",)).remove_own(1)
    assert (tmp_path / "local.json").read_text() == content


def test_state_home_follows_xdg_and_ignores_relative_values() -> None:
    assert state_home({"XDG_STATE_HOME": "/state"}) == Path("/state/epochcast")
    assert state_home({"XDG_STATE_HOME": "relative"}) == Path.home() / ".local" / "state" / "epochcast"
