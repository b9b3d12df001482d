"""The manifest of a sharded checkpoint: which files, stored by the hosts of several ranks, make it up."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from shared.artifacts import ArtifactStore, FileMissing

NAME = "manifest.json"

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]*[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)]
"""A plain file name that may become part of a key: no separator, and neither `.` nor `..`."""


class DamagedManifest(Exception):
    """Raised when what the store holds is no manifest of ours."""


class StoredShardFile(BaseModel):
    """One file of a rank's part, in the artifact store."""

    model_config = ConfigDict(frozen=True)

    key: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def name(self) -> str:
        return self.key.rsplit("/", 1)[-1]


class Manifest(BaseModel):
    """`epoch` and `step` as in any checkpoint; the files of all `world` ranks."""

    world: int = Field(ge=1)
    epoch: int | None
    step: int | None
    files: list[StoredShardFile]

    @model_validator(mode="after")
    def _in_one_folder(self) -> Self:
        """Names are what the files get on a host's disk."""
        if len({file.key.rsplit("/", 1)[0] for file in self.files}) > 1:
            raise ValueError("the files are not in one folder")
        return self

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def is_manifest(key: str) -> bool:
    """Whether an artifact is a sharded checkpoint. No trainer chooses the last part of a key."""
    return key.endswith(f"/{NAME}")


def read_manifest(content: bytes, key: str) -> Manifest:
    """Raises DamagedManifest for anything but a manifest whose files lie beside it."""
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise DamagedManifest(f"{key}: {error.errors()[0]['msg']}") from error
    folder = key.rsplit("/", 1)[0]
    if stray := [file.key for file in manifest.files if file.key != f"{folder}/{file.name}"]:
        raise DamagedManifest(f"{key} names {stray[0]}, which is not beside it")
    return manifest


def delete_artifact(store: ArtifactStore, key: str) -> None:
    """Removes what an artifact's key stands for: of a manifest all its files first, so that none is forgotten.

    Raises ArtifactsUnavailable, DamagedManifest.
    """
    if is_manifest(key):
        try:
            manifest = read_manifest(b"".join(store.stream(key)), key)
        except FileMissing:
            return
        for file in manifest.files:
            store.delete(file.key)
    store.delete(key)
