"""A bundle's content and its canonical form: the same files give the same name, whatever packed them.

The name is the SHA-256 of one line a file, sorted by path: `<sha256 of its bytes> <x if executable, else -> <path>`.
Times, owners, the order of members, empty folders and the compression are no part of it.
"""

import gzip
import hashlib
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shared.artifacts import sha256_of

PREFIX = "sha256:"


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file. `path`: relative, with slashes."""

    path: str
    bytes: int
    sha256: str
    is_executable: bool = False

    @property
    def mode(self) -> int:
        return 0o755 if self.is_executable else 0o644


@dataclass(frozen=True)
class BundleContent:
    """Files sorted by the bytes of their paths."""

    files: tuple[BundleFile, ...]

    @classmethod
    def of(cls, files: Iterable[BundleFile]) -> "BundleContent":
        return cls(tuple(sorted(files, key=lambda file: file.path.encode())))

    @cached_property
    def sha256(self) -> str:
        """Hex."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.sha256} {'x' if file.is_executable else '-'} {file.path}\n".encode())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """As a submission names it: `sha256:…`."""
        return PREFIX + self.sha256

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def paths(self) -> list[str]:
        return [file.path for file in self.files]


def key_of(sha256: str) -> str:
    """Where the artifact store keeps it."""
    return f"bundles/{sha256}.tar.gz"


def content_of(folder: Path) -> BundleContent:
    """What a folder of plain files holds; links in it are not followed and not counted."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            is_executable = bool(status.st_mode & 0o111)
            name = path.relative_to(folder).as_posix()
            found.append(BundleFile(name, status.st_size, sha256_of(path), is_executable))
    return BundleContent.of(found)


def pack(content: BundleContent, folder: Path, target: Path) -> None:
    """The files below `folder` as the canonical tar.gz: no times, no owners, sorted."""
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for file in content.files:
            member = tarfile.TarInfo(file.path)
            member.size, member.mode = file.bytes, file.mode
            with (folder / file.path).open("rb") as source:
                archive.addfile(member, source)
