"""Parts of sharded checkpoints: committed once all are stored, dropped once nobody needs them, never trusted."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import pytest

from shared.artifacts import ArtifactStore, FileMissing
from shared.attempt import StoredFile
from shared.manifest import DamagedManifest, StoredShardFile, delete_artifact, read_manifest
from worker.reports import ShardSaved, Unreadable, read
from worker.shards import ShardSets, StoredShard

FOLDER = "jobs/1/checkpoints/000002"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore((tmp_path / "artifacts").as_uri())


@pytest.fixture
def files(tmp_path: Path) -> Any:
    """The names of all files in the store."""
    return lambda: sorted(p.relative_to(tmp_path / "artifacts").as_posix() for p in tmp_path.rglob("*") if p.is_file())


def part(store: ArtifactStore, checkpoint: str, rank: int, world: int = 2) -> StoredShard:
    """A part whose one file is in the store."""
    content = f"{checkpoint} {rank}".encode()
    key = f"{FOLDER}/{checkpoint}/__{rank}_0.distcp"
    store.write(key, content)
    file = StoredShardFile(key=key, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    return StoredShard(checkpoint, world, rank, 3, None, (file,), 0.5 if rank == 0 else None)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_checkpoint_is_committed_with_its_last_part_in_any_order(
    order: tuple[int, ...], store: ArtifactStore, files: Any
) -> None:
    committed: list[StoredFile] = []
    sets = ShardSets(store, FOLDER, committed.append, retry_s=1)
    for rank in order:
        assert committed == []
        sets.add(part(store, "ckpt-000003", rank, world=3))
    (file,) = committed
    content = b"".join(store.stream(file.key))
    manifest = read_manifest(content, file.key)
    assert (file.kind, file.key, file.epoch, file.loss) == ("checkpoint", f"{FOLDER}/ckpt-000003/manifest.json", 3, 0.5)
    assert (file.bytes, file.sha256) == (3 * len("ckpt-000003 0"), hashlib.sha256(content).hexdigest())
    assert [one.name for one in manifest.files] == ["__0_0.distcp", "__1_0.distcp", "__2_0.distcp"]
    sets.add(part(store, "ckpt-000003", 0, world=3))  # told twice
    assert len(files()) == 4
    delete_artifact(store, file.key)
    assert files() == []
    delete_artifact(store, file.key)  # a second time, as after an answer that was lost


def test_newer_whole_checkpoint_drops_older_parts_also_those_that_come_late(store: ArtifactStore, files: Any) -> None:
    committed: list[StoredFile] = []
    sets = ShardSets(store, FOLDER, committed.append, retry_s=1)
    sets.add(part(store, "ckpt-000001", 0))
    sets.add(part(store, "ckpt-000002", 0))
    sets.add(part(store, "ckpt-000003", 0))
    sets.add(part(store, "ckpt-000002", 1))
    assert [file.key.split("/")[-2] for file in committed] == ["ckpt-000002"]
    assert not sets.is_wanted("ckpt-000001")
    assert sets.is_wanted("ckpt-000003")
    sets.add(part(store, "ckpt-000001", 1))
    names = [f"{FOLDER}/ckpt-000002/{name}" for name in ("__0_0.distcp", "__1_0.distcp", "manifest.json")]
    assert files() == [*names, f"{FOLDER}/ckpt-000003/__0_0.distcp"]
    sets.end()
    assert files() == names
    assert len(committed) == 1


def test_part_of_another_world_is_no_part(store: ArtifactStore) -> None:
    committed: list[StoredFile] = []
    sets = ShardSets(store, FOLDER, committed.append, retry_s=1)
    sets.add(part(store, "ckpt-000001", 0, world=2))
    sets.add(part(store, "ckpt-000001", 1, world=3))
    assert committed == []


def test_manifest_names_only_files_beside_it(store: ArtifactStore) -> None:
    one = part(store, "ckpt-000001", 0).files[0]
    content = f'{{"world":1,"epoch":1,"step":null,"files":[{one.model_dump_json()}]}}'.encode()
    assert read_manifest(content, f"{FOLDER}/ckpt-000001/manifest.json").bytes == one.bytes
    with pytest.raises(DamagedManifest, match="not beside it"):
        read_manifest(content, f"{FOLDER}/ckpt-000002/manifest.json")
    with pytest.raises(DamagedManifest):
        read_manifest(b"rubbish", f"{FOLDER}/ckpt-000001/manifest.json")
    delete_artifact(store, one.key)
    with pytest.raises(FileMissing):
        store.size(one.key)


def packet(**changes: Any) -> dict[str, Any]:
    file = {"file": "__1_0.distcp", "bytes": 3, "sha256": "0" * 64}
    return {"type": "shard", "rank": 1, "world": 2, "checkpoint": "ckpt-000003", "epoch": 3, "files": [file], **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 2}, {"rank": -1}, {"world": 0}, {"checkpoint": ".."}, {"checkpoint": "a/b"}, {"checkpoint": ""},
        {"checkpoint": "."}, {"checkpoint": "x\n"}, {"files": [{"file": "../x", "bytes": 1, "sha256": "0" * 64}]},
        {"files": [{"file": "manifest.json", "bytes": 1, "sha256": "0" * 64}]},
        {"files": [{"file": "a", "bytes": 1, "sha256": "0" * 64}] * 2},
        {"files": [{"file": "a", "bytes": -1, "sha256": "0" * 64}]},
        {"files": [{"file": "a", "bytes": 1, "sha256": "xyz"}]},
    ],
)  # fmt: skip
def test_packet_that_is_no_part_is_passed_over(changes: dict[str, Any]) -> None:
    assert isinstance(read(packet(**changes)), Unreadable)


def test_only_regular_files_in_a_real_folder_are_a_part(tmp_path: Path) -> None:
    saved = read(packet())
    assert isinstance(saved, ShardSaved)
    assert saved.paths(tmp_path) is None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "__1_0.distcp").write_bytes(b"abc")
    folder = tmp_path / "ckpt-000003"
    folder.symlink_to(elsewhere)
    assert saved.paths(tmp_path) is None
    folder.unlink()
    folder.mkdir()
    assert saved.paths(tmp_path) is None
    (folder / "__1_0.distcp").symlink_to(elsewhere / "__1_0.distcp")
    assert saved.paths(tmp_path) is None
    (folder / "__1_0.distcp").unlink()
    (folder / "__1_0.distcp").write_bytes(b"abc")
    assert saved.paths(tmp_path) == [folder / "__1_0.distcp"]
