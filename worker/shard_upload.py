"""Takes the parts of sharded checkpoints that this host's ranks have written to the artifact store, oldest first."""

import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from shared.artifacts import ArtifactStore, ArtifactsUnavailable
from shared.manifest import StoredShardFile
from worker.outcome import Cut
from worker.requests import Requests
from worker.shards import StoredShard

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LocalShard:
    """One rank's part, complete on local disk in `folder`. `files`: path, size in bytes and SHA-256 of each."""

    folder: Path
    world: int
    rank: int
    epoch: int | None
    step: int | None
    files: tuple[tuple[Path, int, str], ...]
    loss: float | None


class ShardUploader:
    """A thread that the training never waits for. `stored` is told of each part that is in the store.

    In order, and none is dropped for a newer one unless that is whole somewhere: hosts that dropped each for itself
    could leave every checkpoint incomplete.
    """

    def __init__(
        self,
        store: ArtifactStore,
        requests: Requests,
        folder: str,
        upload_s: float,
        stored: Callable[[StoredShard], None],
        is_wanted: Callable[[str], bool],
    ) -> None:
        """`folder`: the key prefix of this generation's checkpoints."""
        self._store = store
        self._requests = requests
        self._folder = folder
        self._upload_s = upload_s
        self._stored = stored
        self._is_wanted = is_wanted
        self._waiting: deque[LocalShard | StoredShard] = deque()
        self._condition = threading.Condition()
        self._begun: Path | None = None
        self._ending = False
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="shard uploader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, shard: LocalShard) -> None:
        superseded: set[Path] = set()
        with self._condition:
            self._waiting.append(shard)
            local = [one.folder for one in self._waiting if isinstance(one, LocalShard)]
            if local.count(shard.folder) == shard.world:
                # All ranks are here, and wait together: what is older and was not begun is needed by nobody.
                superseded = set(local) - {shard.folder} - {self._begun}
                self._waiting = deque(
                    one for one in self._waiting if isinstance(one, StoredShard) or one.folder not in superseded
                )
            self._condition.notify_all()
        for folder in superseded:
            shutil.rmtree(folder, ignore_errors=True)

    def add_stored(self, shard: StoredShard) -> None:
        """A part that another host has in the store by now."""
        with self._condition:
            self._waiting.append(shard)
            self._condition.notify_all()

    def stop(self) -> None:
        """Ends at once; `finish` first for what should still be uploaded."""
        with self._condition:
            self._ending = True
            self._condition.notify_all()
        if self._thread.ident is not None:
            self._thread.join(1.0)

    def finish(self) -> None:
        """Waits until all parts are uploaded, `upload_s` at most."""
        with self._condition:
            self._condition.wait_for(lambda: not self._waiting and not self._busy, self._upload_s)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._ending or bool(self._waiting))
                if self._ending:
                    return
                shard, self._busy = self._waiting.popleft(), True
                if isinstance(shard, LocalShard):
                    self._begun = shard.folder
            try:
                if isinstance(shard, LocalShard):
                    self._upload(shard)
                else:
                    self._stored(shard)
            except Exception:
                logger.exception("the shard uploader failed")
                self._requests.ask(Cut.PLATFORM)
            with self._condition:
                self._busy = False
                self._condition.notify_all()

    def _upload(self, shard: LocalShard) -> None:
        checkpoint = shard.folder.name
        files: list[StoredShardFile] = []
        for path, size_bytes, sha256 in shard.files:
            key = f"{self._folder}/{checkpoint}/{path.name}"
            if not self._put(key, path, checkpoint):
                self._forget(shard)
                self._take_back(files)
                return
            files.append(StoredShardFile(key=key, bytes=size_bytes, sha256=sha256))
        self._stored(
            StoredShard(checkpoint, shard.world, shard.rank, shard.epoch, shard.step, tuple(files), shard.loss)
        )
        self._forget(shard)

    def _forget(self, shard: LocalShard) -> None:
        """The part leaves the local disk, with its last one the folder."""
        for path, _, _ in shard.files:
            path.unlink(missing_ok=True)
        if shard.folder.is_dir() and not any(shard.folder.iterdir()):
            shard.folder.rmdir()

    def _take_back(self, files: list[StoredShardFile]) -> None:
        """What of a part is in the store already; nobody was told of it."""
        for file in files:
            try:
                self._store.delete(file.key)
            except ArtifactsUnavailable as error:
                logger.warning("half a part could not be deleted", key=file.key, error=str(error))

    def _put(self, key: str, path: Path, checkpoint: str) -> bool:
        """Tries until the file is stored. False: it is gone, not wanted any more, or the time is over."""
        deadline = time.monotonic() + self._upload_s
        while not self._ending:
            if not path.exists() or not self._is_wanted(checkpoint):
                return False
            try:
                self._store.put(key, path)
                return True
            except ArtifactsUnavailable as error:
                logger.warning("part of a checkpoint not uploaded yet", key=key, error=str(error))
            if time.monotonic() > deadline:
                return False
            time.sleep(1.0)
        return False
