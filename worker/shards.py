"""Sharded checkpoints in the artifact store: collects the ranks' parts, wherever they come from, until one is whole."""

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog

from shared.artifacts import ArtifactStore, ArtifactsUnavailable
from shared.attempt import StoredFile
from shared.manifest import NAME, Manifest, StoredShardFile

logger = structlog.get_logger(__name__)

MAX_OPEN = 64


@dataclass(frozen=True, slots=True)
class StoredShard:
    """One rank's part of a checkpoint, complete in the store. `loss`: as rank 0's supervisor knows it."""

    checkpoint: str
    world: int
    rank: int
    epoch: int | None
    step: int | None
    files: tuple[StoredShardFile, ...]
    loss: float | None = None


def to_json(shard: StoredShard) -> dict[str, Any]:
    """As it travels from host to host."""
    return asdict(shard) | {"files": [file.model_dump() for file in shard.files]}


def from_json(content: dict[str, Any]) -> StoredShard:
    files = tuple(StoredShardFile.model_validate(file) for file in content["files"])
    return StoredShard(**(content | {"files": files}))


@dataclass(slots=True)
class _Open:
    """A checkpoint that waits for parts."""

    world: int
    shards: dict[int, StoredShard] = field(default_factory=dict)


class ShardSets:
    """The checkpoints of one generation. Threads may add at once; what isn't whole is never committed."""

    def __init__(
        self, store: ArtifactStore, folder: str, commit: Callable[[StoredFile], None], *, retry_s: float
    ) -> None:
        """`folder`: the key prefix of this generation's checkpoints. `commit` moves the job's pointer."""
        self._store = store
        self._folder = folder
        self._commit = commit
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}
        self._closed: set[str] = set()
        self._committed: set[str] = set()
        self._is_ended = False

    def add(self, shard: StoredShard) -> None:
        """The last part that was missing makes the checkpoint the job's, and the older ones that wait superfluous."""
        with self._lock:
            whole, dropped = self._take(shard)
        self._drop(dropped)
        if whole is not None:
            self._write(shard.checkpoint, whole)

    def is_wanted(self, checkpoint: str) -> bool:
        """False once a newer checkpoint is whole: its parts need not be uploaded any more."""
        with self._lock:
            return checkpoint not in self._closed

    def end(self) -> None:
        """Nothing more is coming: what stayed incomplete leaves the store."""
        with self._lock:
            self._is_ended = True
            left = [shard for one in self._open.values() for shard in one.shards.values()]
            self._closed |= set(self._open)
            self._open.clear()
        self._drop(left)

    def _take(self, shard: StoredShard) -> tuple[list[StoredShard] | None, list[StoredShard]]:
        """All parts, if this was the last one; and the parts that nobody needs now."""
        if shard.checkpoint in self._closed:
            # A part that comes twice is the one that the manifest names.
            return None, [] if shard.checkpoint in self._committed else [shard]
        one = self._open.setdefault(shard.checkpoint, _Open(shard.world))
        if one.world != shard.world or shard.rank >= one.world:
            logger.warning("a part of another number of ranks", checkpoint=shard.checkpoint, world=shard.world)
            return None, []
        one.shards[shard.rank] = shard
        dropped: list[StoredShard] = []
        if len(one.shards) < one.world:
            while len(self._open) > MAX_OPEN:
                dropped += self._close(next(iter(self._open)))
            return None, dropped
        for name in list(self._open):  # in the order in which their first parts came
            if name == shard.checkpoint:
                break
            dropped += self._close(name)
        self._committed.add(shard.checkpoint)
        return self._close(shard.checkpoint), dropped

    def _close(self, name: str) -> list[StoredShard]:
        self._closed.add(name)
        return list(self._open.pop(name).shards.values())

    def _write(self, checkpoint: str, shards: list[StoredShard]) -> None:
        first = min(shards, key=lambda shard: shard.rank)
        files = [file for shard in sorted(shards, key=lambda shard: shard.rank) for file in shard.files]
        manifest = Manifest(world=first.world, epoch=first.epoch, step=first.step, files=files)
        content = manifest.model_dump_json().encode()
        key = f"{self._folder}/{checkpoint}/{NAME}"
        if not self._put(key, content):
            self._drop(shards)
            return
        sha256 = hashlib.sha256(content).hexdigest()
        self._commit(StoredFile("checkpoint", key, manifest.bytes, sha256, first.epoch, first.step, first.loss))

    def _put(self, key: str, content: bytes) -> bool:
        deadline = time.monotonic() + self._retry_s
        while not self._is_ended:
            try:
                self._store.write(key, content)
                return True
            except ArtifactsUnavailable as error:
                logger.warning("manifest not stored yet", key=key, error=str(error))
            if time.monotonic() > deadline:
                return False
            time.sleep(1.0)
        return False

    def _drop(self, shards: list[StoredShard]) -> None:
        """What can't be deleted now costs space, not correctness: no manifest names it."""
        for key in [file.key for shard in shards for file in shard.files]:
            try:
                self._store.delete(key)
            except ArtifactsUnavailable as error:
                logger.warning("a superseded part could not be deleted", key=key, error=str(error))
