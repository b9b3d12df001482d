"""Reading a stranger's archive: every member is checked, and one that is unsafe refuses the whole of it.

Nothing of tarfile's or zipfile's own extraction is used: only plain files are written, under names that were checked.
"""

import gzip
import hashlib
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from shared.bundle_content import BundleContent, BundleFile
from shared.bundle_names import Names, UnsafeName

Kind = Literal["tar", "zip"]

_BLOCK = 256 * 1024
_MAX_HEADER_BYTES = 64 * 1024
_ZIP_END_BYTES, _ZIP_COMMENT_BYTES, _ZIP_ENTRY_BYTES = 22, 65535, 2048
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one archive may unpack to. `ratio` counts once more than `ratio_from_bytes` are unpacked: padding alone
    shrinks a tiny archive a hundredfold."""

    members: int = 10_000
    bytes: int = 2**30
    ratio: int = 100
    ratio_from_bytes: int = 2**20


LIMITS = Limits()


class BundleRefused(Exception):
    """Raised when an archive can't become a bundle. `member`: the one to blame, if one is."""

    def __init__(self, reason: str, member: str | None = None) -> None:
        shown = None if member is None else member.encode(errors="replace").decode()[:200]
        super().__init__(f"{shown!r} {reason}" if shown is not None else reason)
        self.reason = reason
        self.member = shown


def unpack(archive: Path, kind: Kind, folder: Path, limits: Limits = LIMITS) -> BundleContent:
    """Writes the archive's files below `folder`, which is empty. Raises BundleRefused, OSError (disk full)."""
    budget = _Budget(limits, archive.stat().st_size)
    names = Names()
    files = []
    try:
        for member in _tar_members(archive, folder, budget) if kind == "tar" else _zip_members(archive, budget):
            budget.count_member()
            try:
                path = names.add(member.name, is_folder=member.is_folder)
            except UnsafeName as unsafe:
                raise BundleRefused(str(unsafe), member.name) from None
            if path is not None and not member.is_folder:
                files.append(_write(member, path, folder, budget))
    except _DAMAGE as error:
        raise BundleRefused(f"the archive is damaged or none of its kind: {error}") from error
    except (ValueError, RuntimeError, OverflowError) as error:  # what zipfile and tarfile make of nonsense in headers
        raise BundleRefused(f"the archive can't be read: {error}") from error
    if not files:
        raise BundleRefused("the archive holds no file")
    return BundleContent.of(files)


class _Budget:
    """Counts what is unpacked, as it is: what a header announces may be a lie."""

    def __init__(self, limits: Limits, packed_bytes: int) -> None:
        self._limits = limits
        self._packed_bytes = max(1, packed_bytes)
        self._members = 0
        self._bytes = 0

    def count_member(self) -> None:
        self._members += 1
        if self._members > self._limits.members:
            raise BundleRefused(f"the archive has more than {self._limits.members:,} files and folders")

    def count_bytes(self, count: int) -> None:
        self._bytes += count
        if self._bytes > self._limits.bytes:
            raise BundleRefused(f"the archive unpacks to more than {self._limits.bytes:,} bytes")
        self.check_ratio(self._bytes)

    def check_ratio(self, unpacked: int) -> None:
        if unpacked > max(self._limits.ratio_from_bytes, self._limits.ratio * self._packed_bytes):
            raise BundleRefused(f"the archive unpacks to more than {self._limits.ratio} times its size")

    def check_tar(self, unpacked: int) -> None:
        """The tar with its headers, which may be some blocks a member and shrink to nothing."""
        headers = self._limits.members * 4096
        if unpacked > self._limits.bytes + headers:
            raise BundleRefused(f"the archive unpacks to more than {self._limits.bytes:,} bytes")
        self.check_ratio(unpacked - headers)


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    is_folder: bool
    is_executable: bool
    content: IO[bytes] | None


def _write(member: _Member, path: str, folder: Path, budget: _Budget) -> BundleFile:
    assert member.content is not None
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with member.content as source, target.open("xb") as file:
        while block := source.read(_BLOCK):
            budget.count_bytes(len(block))
            digest.update(block)
            size += len(block)
            file.write(block)
    target.chmod(0o755 if member.is_executable else 0o644)
    return BundleFile(path, size, digest.hexdigest(), member.is_executable)


def _tar_members(archive: Path, folder: Path, budget: _Budget) -> Iterator[_Member]:
    """The gzip's content goes to a file first: reading a tar steps back, and a gzip would start over each time."""
    plain = folder.with_name(folder.name + ".tar")
    try:
        size = 0
        with gzip.open(archive) as packed, plain.open("wb") as target:
            while block := packed.read(_BLOCK):
                size += len(block)
                budget.check_tar(size)
                target.write(block)
        with plain.open("rb") as file, tarfile.open(fileobj=_Forward(file), mode="r:") as tar:
            while (member := tar.next()) is not None:
                yield _of_tar(tar, member)
    finally:
        plain.unlink(missing_ok=True)


def _of_tar(tar: tarfile.TarFile, member: tarfile.TarInfo) -> _Member:
    if member.isdir():
        return _Member(member.name, True, False, None)
    if member.issym() or member.islnk():
        raise BundleRefused("is a link; pack what it points to", member.name)
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse() or member.size < 0:
        raise BundleRefused("is no plain file (a device, a pipe, a sparse file or another kind)", member.name)
    content = tar.extractfile(member)
    return _Member(member.name, False, bool(member.mode & 0o111), content)


class _Forward(io.RawIOBase):
    """A tar as tarfile may see it: no header larger than 64 KiB at once, and no way back (sizes below zero loop)."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._reached = 0

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= max(_BLOCK, _MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {size} bytes")
        content = self._file.read(size)
        self._reached = max(self._reached, self._file.tell())
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_SET or offset < self._reached - 2 * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("a member lies before the one that it follows")
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


def _zip_members(archive: Path, budget: _Budget) -> Iterator[_Member]:
    _check_zip_directory(archive)
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            name = entry.orig_filename  # `filename` ends at the first NUL
            mode = entry.external_attr >> 16
            if stat.S_ISLNK(mode):
                raise BundleRefused("is a link; pack what it points to", name)
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise BundleRefused("is no plain file (a device, a pipe or another kind)", name)
            if name.endswith("/") or stat.S_ISDIR(mode):
                yield _Member(name, True, False, None)
                continue
            if entry.flag_bits & 1:
                raise BundleRefused("is encrypted", name)
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise BundleRefused("is packed in a way other than deflate", name)
            yield _Member(name, False, bool(mode & 0o111), opened.open(entry))


def _check_zip_directory(archive: Path) -> None:
    """zipfile reads the whole directory into memory, whatever its size: this looks at the size first."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        start = max(0, size - _ZIP_END_BYTES - _ZIP_COMMENT_BYTES - 20)
        file.seek(start)
        tail = file.read()
    at = len(tail) - _ZIP_END_BYTES
    if not (at >= 0 and tail[at : at + 4] == b"PK\5\6" and tail.endswith(b"\0\0")):
        at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + _ZIP_END_BYTES:
        raise BundleRefused("the body is no zip archive, or its end is missing")
    if tail[max(0, at - 20) : at].startswith(b"PK\6\7"):
        raise BundleRefused("the archive is a zip64; a bundle is too small to need that")
    if int.from_bytes(tail[at + 12 : at + 16], "little") > LIMITS.members * _ZIP_ENTRY_BYTES:
        raise BundleRefused(f"the archive has more than {LIMITS.members:,} files and folders")
