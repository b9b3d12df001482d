"""Where files are kept after an attempt: a local folder or an object store, behind one small interface."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.store import LocalStore, ObjectStore, from_url

_READ_BYTES = 8 * 1024 * 1024
_STREAM_BYTES = 1024 * 1024


class ArtifactsUnavailable(Exception):
    """Raised when the artifact store can't be reached, or refuses."""


class FileMissing(ArtifactsUnavailable):
    """Raised when the artifact store has no file under a key that the record names."""


class ArtifactStore:
    """Files by key (`jobs/42/checkpoints/…`). Keys never leave the store's root: obstore refuses `..`."""

    def __init__(self, url: str) -> None:
        """`file:///folder` (made if missing), `s3://bucket/prefix`, or any other URL that obstore knows."""
        self._store: ObjectStore
        parts = urlsplit(url)
        if parts.scheme == "file":
            folder = Path(unquote(parts.path)).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            self._store = LocalStore(folder)
        else:
            self._store = from_url(url)

    def put(self, key: str, path: Path) -> None:
        """Uploads a file; readers see it whole or not at all. Raises ArtifactsUnavailable."""
        try:
            obstore.put(self._store, key, path)
        except (obstore.exceptions.BaseError, OSError) as error:
            raise ArtifactsUnavailable(f"writing {key} failed: {_first_line(error)}") from error

    def get(self, key: str, path: Path) -> None:
        """Downloads a file to `path` under a temporary name first. Raises FileMissing, ArtifactsUnavailable."""
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            for block in self.stream(key):
                file.write(block)
        partial.rename(path)

    def size(self, key: str) -> int:
        """In bytes. Raises FileMissing, ArtifactsUnavailable."""
        try:
            return int(obstore.head(self._store, key)["size"])
        except (FileNotFoundError, obstore.exceptions.NotFoundError) as error:
            raise FileMissing(f"{key} is not in the artifact store") from error
        except (obstore.exceptions.BaseError, OSError) as error:
            raise ArtifactsUnavailable(f"reading {key} failed: {_first_line(error)}") from error

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` to before `end` (None: all), in blocks. Raises FileMissing, ArtifactsUnavailable."""
        try:
            size = int(obstore.head(self._store, key)["size"])
            last = size if end is None else min(end, size)
            for position in range(start, last, _STREAM_BYTES):
                yield bytes(
                    obstore.get_range(self._store, key, start=position, end=min(position + _STREAM_BYTES, last))
                )
        except (FileNotFoundError, obstore.exceptions.NotFoundError) as error:
            raise FileMissing(f"{key} is not in the artifact store") from error
        except (obstore.exceptions.BaseError, OSError) as error:
            raise ArtifactsUnavailable(f"reading {key} failed: {_first_line(error)}") from error

    def delete(self, key: str) -> None:
        """Removes a file; one that is gone already is no error. Raises ArtifactsUnavailable."""
        try:
            obstore.delete(self._store, key)
        except (FileNotFoundError, obstore.exceptions.NotFoundError):
            return
        except (obstore.exceptions.BaseError, OSError) as error:
            raise ArtifactsUnavailable(f"deleting {key} failed: {_first_line(error)}") from error

    def write(self, key: str, content: bytes) -> None:
        """Stores a few bytes: the probe with which hosts show that they can write. Raises ArtifactsUnavailable."""
        try:
            obstore.put(self._store, key, content)
        except (obstore.exceptions.BaseError, OSError) as error:
            raise ArtifactsUnavailable(f"writing {key} failed: {_first_line(error)}") from error


def sha256_of(path: Path) -> str:
    """The file's SHA-256, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
