"""The folder in which `epochcast up` keeps everything: lock, secret, database, Redis' file, artifacts, work folders."""

import fcntl
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa

SECRET = "secret"


class DataFolderError(Exception):
    """The root of what can be wrong with a data folder; the message is fit for the user."""


class DataFolderUnusable(DataFolderError):
    """Raised when the folder can't be created or written."""


class DataFolderInUse(DataFolderError):
    """Raised when another `up` runs on the folder."""


@dataclass(frozen=True)
class DataFolder:
    """Where things lie below `path` (absolute). Everything in it is for its owner only."""

    path: Path

    @property
    def database_url(self) -> str:
        return sa.URL.create("sqlite", database=str(self.path / "epochcast.db")).render_as_string(hide_password=False)

    @property
    def artifacts_url(self) -> str:
        return (self.path / "artifacts").as_uri()

    @property
    def work_dir(self) -> Path:
        return self.path / "work"

    @property
    def redis(self) -> Path:
        return self.path / "redis"

    def lock(self) -> IO[str]:
        """Creates the folder and holds it until the file is closed or the process ends.

        Raises DataFolderUnusable or DataFolderInUse.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.path / ".gitignore").write_text("*\n")
            file = (self.path / "lock").open("a+")
        except OSError as error:
            raise DataFolderUnusable(
                f"the data folder {self.path} can't be written ({error.strerror}); choose another with --data-dir"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise DataFolderInUse(
                f"another `epochcast up` (pid {holder}) uses {self.path}; stop it, or choose another --data-dir"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file

    def secret(self) -> str:
        """The kept secret; made at the first call. Tokens stay valid over restarts because of it."""
        kept = read_secret(self.path)
        if kept is None:
            kept = secrets.token_hex(32)
            write_private(self.path / SECRET, kept + "\n")
        return kept


def read_secret(path: Path) -> str | None:
    """The secret in the data folder `path`; None where `up` never ran."""
    try:
        return (path / SECRET).read_text().strip() or None
    except FileNotFoundError:
        return None


def write_private(path: Path, text: str) -> None:
    """Writes a 0600 file in one step: a reader sees the old content or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


@dataclass(frozen=True)
class StateFiles:
    """The `local.json` by which the command line finds the running platform; one or two places."""

    paths: tuple[Path, ...]

    def write(self, content: dict[str, Any]) -> None:
        for path in self.paths:
            write_private(path, json.dumps(content) + "\n")

    @property
    def is_missing(self) -> bool:
        """Whether one of the places has no file: another `up` wrote its own there, and took it away at its end."""
        return not all(path.exists() for path in self.paths)

    def remove_own(self, pid: int) -> None:
        """Leaves a file alone that another `up` has written since."""
        for path in self.paths:
            try:
                if json.loads(path.read_text()).get("pid") == pid:
                    path.unlink()
            except (OSError, ValueError, AttributeError):
                continue


def state_home(environment: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/epochcast`. A relative XDG_STATE_HOME counts as unset, as its specification says."""
    configured = environment.get("XDG_STATE_HOME", "")
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".local" / "state"
    return base / "epochcast"
