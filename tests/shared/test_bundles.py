"""Bundles: the same files are the same bundle whatever packed them, and no unsafe archive becomes one."""

import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.bundle_archive import BundleRefused, Kind, Limits, unpack
from shared.bundle_content import BundleContent, content_of, pack
from shared.bundle_names import Names, UnsafeName
from shared.bundles import Bundles
from shared.database import Database
from tests.shared import archives
from tests.shared.archives import TRAIN, UNSAFE


def unpacked(folder: Path, archive: bytes, kind: Kind = "tar", limits: Limits | None = None) -> BundleContent:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "archive").write_bytes(archive)
    (folder / "content").mkdir()
    return unpack(folder / "archive", kind, folder / "content", limits or Limits())


@pytest.mark.parametrize("what", UNSAFE)
def test_every_unsafe_archive_is_refused_whole(tmp_path: Path, what: str) -> None:
    kind, make, reason = UNSAFE[what]
    (tmp_path / "inside").mkdir()
    with pytest.raises(BundleRefused, match=reason.replace("(", r"\(")):
        unpacked(tmp_path / "inside", make(), kind)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["inside"], "something was written beside its folder"
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink() or path.is_fifo()]


def test_limits_count_what_is_unpacked_and_not_what_is_announced(tmp_path: Path) -> None:
    files = {f"f{n}": random.Random(n).randbytes(1000) for n in range(10)}
    for number, kind in enumerate[Kind](("tar", "zip")):
        archive = archives.tar(files) if kind == "tar" else archives.zipped(files)
        assert len(unpacked(tmp_path / f"{number}a", archive, kind, Limits(members=10, bytes=10_000)).files) == 10
        with pytest.raises(BundleRefused, match="more than 9 files"):
            unpacked(tmp_path / f"{number}b", archive, kind, Limits(members=9))
        with pytest.raises(BundleRefused, match="more than 9,999 bytes"):
            unpacked(tmp_path / f"{number}c", archive, kind, Limits(bytes=9_999))


PATHS = st.lists(
    st.lists(st.text("abcé.-_ ", min_size=1, max_size=4).filter(lambda part: part not in (".", "..")), min_size=1)
    .map(lambda parts: "/".join(parts[:3]))
    .filter(lambda path: not path.startswith(" ")),
    min_size=1,
    max_size=6,
    unique=True,
)


def as_bundle(paths: list[str]) -> list[str]:
    """Those of the paths that can stand in one bundle."""
    names = Names()
    kept = []
    for path in paths:
        try:
            names.add(path, is_folder=False)
            kept.append(path)
        except UnsafeName:
            names = Names()
            for earlier in kept:
                names.add(earlier, is_folder=False)
    return kept


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_same_files_give_the_same_bundle_whatever_packed_them(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    tmp_path = tmp_path_factory.mktemp("packers")
    paths = as_bundle(data.draw(PATHS))
    files = {path: data.draw(st.binary(max_size=50)) for path in paths}
    shuffled = {path: files[path] for path in data.draw(st.permutations(paths))}
    first = unpacked(tmp_path / "first", archives.tar(files))
    again = unpacked(tmp_path / "again", archives.tar(shuffled, mtime=1_000_000))
    dotted = unpacked(tmp_path / "dotted", archives.tar({f"./{path}": files[path] for path in paths}))
    zipped = unpacked(tmp_path / "zipped", archives.zipped(shuffled), "zip")
    assert first.sha256 == again.sha256 == dotted.sha256 == zipped.sha256
    assert content_of(tmp_path / "zipped" / "content") == first
    # Its canonical archive is the same to the byte, and unpacks to itself.
    for name, content in (("first", first), ("zipped", zipped)):
        pack(content, tmp_path / name / "content", tmp_path / f"{name}.tar.gz")
    assert (tmp_path / "first.tar.gz").read_bytes() == (tmp_path / "zipped.tar.gz").read_bytes()
    assert unpacked(tmp_path / "round", (tmp_path / "first.tar.gz").read_bytes()) == first


@settings(max_examples=60, deadline=None)
@given(files=st.dictionaries(st.sampled_from(["a", "b", "c/d"]), st.binary(max_size=5), min_size=1), flip=st.booleans())
def test_another_name_byte_or_mode_is_another_bundle(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], flip: bool
) -> None:
    tmp_path = tmp_path_factory.mktemp("changes")
    name = next(iter(files))
    known = unpacked(tmp_path / "0", archives.tar(files)).sha256
    others = [
        archives.tar(files | {name: files[name] + b"x"}),
        archives.tar({("e" if path == name else path): content for path, content in files.items()}),
        archives.tar(files, executable=frozenset({name})),
        archives.tar(files | {"extra": b""}),
    ]
    found = [unpacked(tmp_path / f"{n + 1}", archive).sha256 for n, archive in enumerate(others)]
    assert len({known, *found}) == 5


def test_empty_folders_and_the_archives_own_root_are_no_part_of_a_bundle(tmp_path: Path) -> None:
    root, empty = tarfile.TarInfo("."), tarfile.TarInfo("./empty/")
    root.type = empty.type = tarfile.DIRTYPE
    script = tarfile.TarInfo("./train.py")
    script.size = len(TRAIN)
    archive = archives.tar_of([(root, b""), (empty, b""), (script, TRAIN)])
    content = unpacked(tmp_path / "a", archive)
    assert content.paths == ["train.py"]
    assert content == unpacked(tmp_path / "b", archives.tar({"train.py": TRAIN}))


def test_the_name_of_a_bundle_is_the_documented_one(tmp_path: Path) -> None:
    import hashlib

    content = unpacked(tmp_path / "a", archives.tar({"b.py": b"", "a.sh": TRAIN}, executable=frozenset({"a.sh"})))
    lines = f"{hashlib.sha256(TRAIN).hexdigest()} x a.sh\n{hashlib.sha256(b'').hexdigest()} - b.py\n"
    assert content.name == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def test_a_bundle_is_known_to_those_who_uploaded_it_only(database_url: str, tmp_path: Path) -> None:
    database = Database(database_url)
    content = unpacked(tmp_path / "a", archives.tar({"train.py": TRAIN}))
    bundles = Bundles(database)
    assert bundles.add(content, "alice")
    assert not bundles.add(content, "alice")
    assert bundles.paths(content.name, "alice") == ["train.py"]
    assert bundles.paths(content.name, "bob") is None
    assert bundles.add(content, "bob"), "that alice has it too is nobody's business"
    assert bundles.paths(content.name, "bob") == ["train.py"]
    database.close()
