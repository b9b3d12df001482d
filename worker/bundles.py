"""Bundles on this host: fetched once, checked, shared by attempts; each attempt works on a copy of its own."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from shared.artifacts import ArtifactStore, FileMissing
from shared.bundle_archive import BundleRefused, unpack
from shared.bundle_content import PREFIX, content_of, key_of
from worker.workspace import fetch

_NAMED_AT_MOST = 20


class CodeRejected(Exception):
    """Raised when the bundle that a job names can't be had or run, and trying again would change nothing."""

    def __init__(self, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail


def place_bundle(bundle: str, store: ArtifactStore, work_dir: Path, work: Path) -> None:
    """Copies the files of `sha256:…` into `work`, which is empty.

    Raises CodeRejected (gone from the store, damaged), ArtifactsUnavailable (the store is away), OSError (disk full).
    """
    sha256 = bundle.removeprefix(PREFIX)
    cached = work_dir / "bundles" / sha256
    for _ in range(2):
        if not cached.is_dir():
            _fetch_into(cached, sha256, store)
        with contextlib.suppress(FileNotFoundError):  # another attempt found it damaged and took it away
            _copy(cached, work)
            # Trainers run as the same user: what one of them did to the shared copy must not reach the next job.
            if content_of(work).sha256 == sha256:
                return
        _empty(work)
        shutil.rmtree(cached, ignore_errors=True)
    raise CodeRejected(f"bundle {bundle} does not stay whole in {cached.parent}; is something changing files there?")


def check_entrypoint(work: Path, entrypoint: str) -> None:
    """Raises CodeRejected when there is nothing of that name to run, and says what there is."""
    path = work / entrypoint
    if path.is_file() or (path / "__main__.py").is_file():
        return
    scripts = sorted(str(file.relative_to(work)) for file in work.rglob("*.py"))
    more = f" and {len(scripts) - _NAMED_AT_MOST} more" if len(scripts) > _NAMED_AT_MOST else ""
    found = f"it has: {', '.join(scripts[:_NAMED_AT_MOST])}{more}" if scripts else "it has no Python file"
    wrong = f"{entrypoint} is a folder without __main__.py" if path.is_dir() else f"has no {entrypoint}"
    raise CodeRejected(f"the bundle's {wrong}" if path.is_dir() else f"the bundle {wrong}", found)


def _fetch_into(cached: Path, sha256: str, store: ArtifactStore) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix="partial-") as name:
        archive, folder = Path(name) / "bundle.tar.gz", Path(name) / "content"
        folder.mkdir()
        try:
            fetch(store, key_of(sha256), archive)
            content = unpack(archive, "tar", folder)
        except FileMissing as error:
            raise CodeRejected(f"bundle {PREFIX}{sha256} is gone: {error}; upload it again") from error
        except BundleRefused as error:
            raise CodeRejected(f"bundle {PREFIX}{sha256} is damaged: {error}; upload it again") from error
        if content.sha256 != sha256:
            raise CodeRejected(f"bundle {PREFIX}{sha256} is damaged: its content has another SHA-256; upload it again")
        _set_mode(folder, 0o444)
        try:
            folder.rename(cached)
        except OSError:
            if not cached.is_dir():
                raise  # else another attempt was quicker


def _copy(cached: Path, work: Path) -> None:
    shutil.copytree(cached, work, dirs_exist_ok=True)
    _set_mode(work, 0o644)


def _set_mode(folder: Path, mode: int) -> None:
    """For files; who may run them stays. Folders stay writable, or nobody could delete them."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode | (path.stat().st_mode & 0o111))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
