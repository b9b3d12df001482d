"""Which files of a folder are sent as a bundle, and the archive that carries them."""

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from epochcast.errors import UsageError

MAX_FILES = 10_000
MAX_BYTES = 2**30
MAX_ARCHIVE_BYTES = 256 * 2**20
MAX_FILE_BYTES = 50 * 2**20
# Never code of yours: what tools leave behind, and what a run outside a job wrote.
SKIPPED_FOLDERS = frozenset(
    {".git", ".hg", ".svn", "__pycache__", ".venv", "venv", "node_modules", ".epochcast", "epochcast-run"}
    | {".mypy_cache", ".ruff_cache", ".pytest_cache", ".tox", ".ipynb_checkpoints"}
)


@dataclass(frozen=True, slots=True)
class PackedFile:
    """`path`: below the folder, with slashes."""

    path: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Package:
    """What will be sent. `left_out`: files that one might miss, each with the reason."""

    folder: Path
    entrypoint: str
    files: tuple[PackedFile, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def choose(script: str | Path, folder: str | Path | None = None) -> Package:
    """The files to send with `script`: its folder's, or `folder`'s, without what git ignores. Raises UsageError."""
    path = Path(script)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name the script in it that is to run, as in {path / 'train.py'}")
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; name a Python script, or a recipe with --recipe")
    if path.suffix != ".py":
        raise UsageError(f"{path}: a job runs a Python script; its name ends with .py")
    root = Path(folder) if folder is not None else path.parent
    try:
        entrypoint = path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise UsageError(f"{path} is not in {root}; the folder that is sent must hold the script") from None
    files, left_out = _sort_out(root, entrypoint)
    return Package(root, entrypoint, tuple(files), tuple(left_out))


def write(package: Package, target: IO[bytes]) -> None:
    """The package as tar.gz. Raises UsageError for a file that can't be read."""
    with tarfile.open(fileobj=target, mode="w:gz", compresslevel=6, format=tarfile.PAX_FORMAT) as archive:
        archive.dereference = True  # or the second of two names of one file would be sent as a link
        for file in package.files:
            try:
                archive.add(package.folder / file.path, file.path, recursive=False, filter=_plain)
            except OSError as error:
                raise UsageError(f"{package.folder / file.path} can't be read: {error.strerror or error}") from None


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without names of users and times: they are nobody's business, and no part of a bundle."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def _sort_out(root: Path, entrypoint: str) -> tuple[list[PackedFile], list[tuple[str, str]]]:
    files: list[PackedFile] = []
    left_out: list[tuple[str, str]] = []
    total = 0
    for name in _candidates(root, entrypoint):
        path = root / name
        if path.is_symlink():
            left_out.append((name, "a symbolic link"))
        elif path.is_dir():
            left_out.append((name, "a git repository inside this one"))
        elif not path.is_file():
            continue  # deleted since git saw it, or a pipe
        elif (size := path.stat().st_size) > MAX_FILE_BYTES:
            left_out.append((name, f"{size / 2**20:.0f} MiB, over the limit of {MAX_FILE_BYTES // 2**20} MiB a file"))
        elif len(files) == MAX_FILES or total + size > MAX_BYTES:
            raise UsageError(
                f"{root} holds more than {MAX_FILES:,} files or {MAX_BYTES // 2**30} GiB; is it the script's own "
                "folder? Move the script, name a smaller folder with --folder, or list what isn't code in .gitignore"
            )
        else:
            files.append(PackedFile(name, size))
            total += size
    if entrypoint not in {file.path for file in files}:
        raise UsageError(f"{entrypoint} would not be sent: {dict(left_out).get(entrypoint, 'git ignores it')}")
    return files, left_out


def _candidates(root: Path, entrypoint: str) -> Iterator[str]:
    """Paths below `root`, sorted; the entrypoint is one even if git ignores it."""
    listed = _listed_by_git(root)
    names = {*listed, entrypoint} if listed is not None else _walked(root)
    for name in sorted(names):
        if SKIPPED_FOLDERS.isdisjoint(name.split("/")):
            yield name


def _listed_by_git(root: Path) -> list[str] | None:
    """What git tracks or would track; None where there is neither a work tree nor a .gitignore. Raises UsageError."""
    listed = _ls_files("-C", str(root))
    if listed is not None or not any(Path(name).name == ".gitignore" for name in _walked(root)):
        return listed
    # No work tree, or one that git doesn't trust: it belongs to somebody else, as folders in containers do.
    with tempfile.TemporaryDirectory(prefix="epochcast-git-") as own:
        if _git("init", "--quiet", own) is not None:
            listed = _ls_files("-C", str(root), f"--git-dir={own}/.git", f"--work-tree={root.resolve()}")
    if listed is None:
        raise UsageError(
            f"{root} has a .gitignore, and git is needed to read it; install git, or name a folder without one with "
            "--folder"
        )
    return listed


def _ls_files(*options: str) -> list[str] | None:
    listed = _git(*options, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return None if listed is None else [os.fsdecode(name) for name in listed.split(b"\0") if name]


def _git(*arguments: str) -> bytes | None:
    """What git says; None when it fails or isn't there."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _walked(root: Path) -> set[str]:
    found: set[str] = set()
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        names += [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found |= {(Path(folder) / name).relative_to(root).as_posix() for name in names}
        if len(found) > 10 * MAX_FILES:
            raise UsageError(
                f"{root} holds more than {10 * MAX_FILES:,} files; move the script into a folder of its own"
            )
    return found
