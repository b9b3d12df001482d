"""Archives for tests of bundles: harmless ones by any packer, and every unsafe kind."""

import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence

TRAIN = b"print('trained')\n"
Member = tuple[str, bytes] | tarfile.TarInfo


def tar(files: Mapping[str, bytes], *, executable: frozenset[str] = frozenset(), mtime: int = 0) -> bytes:
    """A tar.gz of plain files."""
    return tar_of([_member(name, content, name in executable, mtime) for name, content in files.items()])


def _member(name: str, content: bytes, executable: bool, mtime: int) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), 0o755 if executable else 0o600, mtime
    return info, content


def tar_of(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(plain.getvalue())


def special(kind: bytes, name: str = "odd", target: str = "train.py") -> bytes:
    """A script, and a member of another kind."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return tar_of([_member("train.py", TRAIN, False, 0), (info, b"")])


def named(*names: str) -> bytes:
    """A tar.gz with one small file for each name, in this order."""
    return tar_of([_member(name, TRAIN, False, 0) for name in names])


def folder_and_file(name: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return tar_of([(info, b""), _member(name, TRAIN, False, 0)])


def zipped(files: Mapping[str, bytes], *, mode: int = stat.S_IFREG | 0o644) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_DEFLATED, mode << 16, 3
            archive.writestr(info, content)
    return packed.getvalue()


def zip_named(*names: str) -> bytes:
    """A zip whose names stand in it as they are given here, whatever zipfile thinks of them."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for place, _ in enumerate(names):
            archive.writestr(f"{place:064}", TRAIN)
    content = packed.getvalue()
    for place, name in enumerate(names):
        content = content.replace(f"{place:064}".encode(), name.encode().ljust(64, b"_"))
    return content


def with_negative_size() -> bytes:
    """A header whose size is below zero: readers that believe it go back and loop."""
    info = tarfile.TarInfo("train.py")
    header = bytearray(info.tobuf())
    header[124:136] = b"\xff" * 4 + struct.pack(">q", -1024)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(bytes(header) * 3 + bytes(1024))


def with_huge_header() -> bytes:
    """A PAX header of 100 MiB, which a reader would take into memory whole."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 100 * 2**20
    return gzip.compress(info.tobuf() + random.Random(0).randbytes(2**20) + bytes(99 * 2**20), 1)


def encrypted_zip() -> bytes:
    content = bytearray(zipped({"train.py": TRAIN}))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


def broken_zip() -> bytes:
    content = bytearray(zipped({"train.py": b"x" * 1000 + TRAIN}))
    content[40] ^= 0xFF
    return bytes(content)


def lzma_zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("train.py", TRAIN)
    return packed.getvalue()


def zip_with_lying_directory() -> bytes:
    """The end of a zip that announces a directory of 4 GiB."""
    content = bytearray(zipped({"train.py": TRAIN}))
    at = content.rindex(b"PK\5\6")
    content[at + 12 : at + 16] = b"\xfe\xff\xff\xff"
    return bytes(content)


Make = Callable[[], bytes]
UNSAFE: dict[str, tuple[str, Make, str]] = {
    # what: kind, archive, a part of the reason
    "absolute": ("tar", lambda: named("train.py", "/etc/passwd"), "is absolute"),
    "parent": ("tar", lambda: named("train.py", "../evil.py"), "leads out"),
    "parent inside": ("tar", lambda: named("a/../../evil.py"), "leads out"),
    "symlink": ("tar", lambda: special(tarfile.SYMTYPE), "is a link"),
    "symlink out": ("tar", lambda: special(tarfile.SYMTYPE, target="/etc/passwd"), "is a link"),
    "hard link": ("tar", lambda: special(tarfile.LNKTYPE), "is a link"),
    "device": ("tar", lambda: special(tarfile.CHRTYPE), "no plain file"),
    "block device": ("tar", lambda: special(tarfile.BLKTYPE), "no plain file"),
    "fifo": ("tar", lambda: special(tarfile.FIFOTYPE), "no plain file"),
    "contiguous": ("tar", lambda: special(tarfile.CONTTYPE), "no plain file"),
    "unknown type": ("tar", lambda: special(b"Z"), "no plain file"),
    "duplicate": ("tar", lambda: named("train.py", "train.py"), "comes twice"),
    "duplicate by dot": ("tar", lambda: named("train.py", "./train.py"), "comes twice"),
    "case": ("tar", lambda: named("train.py", "Train.py"), "ignores case"),
    "case of a folder": ("tar", lambda: named("data/a", "Data/b"), "ignores case"),
    "accents": ("tar", lambda: named("caf\u00e9.py", "cafe\u0301.py"), "ignores case"),
    "file and folder": ("tar", lambda: named("a", "a/b"), "both a file and a folder"),
    "folder and file": ("tar", lambda: folder_and_file("a"), "both a file and a folder"),
    "newline": ("tar", lambda: named("a\nb.py"), "control character"),
    "escape": ("tar", lambda: named("a\x1b[2J.py"), "control character"),
    "not utf-8": ("tar", lambda: named("a\udcff.py"), "control character, or is not UTF-8"),
    "backslash": ("tar", lambda: named("..\\evil.py"), "backslash"),
    "drive": ("tar", lambda: named("C:evil.py"), "drive letter"),
    "empty part": ("tar", lambda: named("a//b.py"), "empty part"),
    "dot part": ("tar", lambda: named("a/./b.py"), "empty part"),
    "long name": ("tar", lambda: named("a" * 256 + "/b.py"), "more than 255 bytes"),
    "deep": ("tar", lambda: named("a/" * 40 + "b.py"), "levels deep"),
    "long path": ("tar", lambda: named(("a" * 200 + "/") * 6 + "b.py"), "more than 1024 bytes"),
    "many": ("tar", lambda: named(*(f"f{n}" for n in range(10_001))), "more than 10,000 files"),
    "bomb": ("tar", lambda: tar({"zeros": bytes(200 * 2**20)}), "100 times its size"),
    "empty": ("tar", lambda: tar({}), "no file"),
    "negative size": ("tar", with_negative_size, "no plain file"),
    "huge header": ("tar", with_huge_header, "damaged"),
    "truncated": ("tar", lambda: tar({"train.py": random.Random(0).randbytes(100_000)})[:-5000], "damaged"),
    "no archive": ("tar", lambda: b"hello", "damaged"),
    "no tar": ("tar", lambda: gzip.compress(b"hello" * 1000), "damaged"),
    "zip as tar": ("tar", lambda: zipped({"train.py": TRAIN}), "damaged"),
    "zip absolute": ("zip", lambda: zipped({"/etc/passwd": TRAIN}), "is absolute"),
    "zip parent": ("zip", lambda: zipped({"../evil.py": TRAIN}), "leads out"),
    "zip symlink": ("zip", lambda: zipped({"odd": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777), "is a link"),
    "zip device": ("zip", lambda: zipped({"odd": b""}, mode=stat.S_IFCHR | 0o666), "no plain file"),
    "zip fifo": ("zip", lambda: zipped({"odd": b""}, mode=stat.S_IFIFO | 0o666), "no plain file"),
    "zip backslash": ("zip", lambda: zip_named("..\\evil.py"), "backslash"),
    "zip nul": ("zip", lambda: zip_named("train.py\0.txt"), "control character"),
    "zip duplicate": ("zip", lambda: zip_named("train.py", "train.py"), "comes twice"),
    "zip case": ("zip", lambda: zipped({"a.py": TRAIN, "A.py": TRAIN}), "ignores case"),
    "zip bomb": ("zip", lambda: zipped({"zeros": bytes(200 * 2**20)}), "100 times its size"),
    "zip encrypted": ("zip", encrypted_zip, "encrypted"),
    "zip lzma": ("zip", lzma_zip, "other than deflate"),
    "zip damaged": ("zip", broken_zip, "damaged"),
    "zip lying": ("zip", zip_with_lying_directory, "more than 10,000"),
    "zip empty": ("zip", lambda: zipped({}), "no file"),
    "tar as zip": ("zip", lambda: tar({"train.py": TRAIN}), "no zip archive"),
}
