"""The files a run leaves: checkpoints that survive a crash at any moment, and models as safetensors."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


_WRAPPERS = {"DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}


class UnreadableCheckpoint(Exception):
    """Raised when a checkpoint's file is missing, cut off, damaged or none of ours."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds. `step`: batches of the epoch that were done; None after a whole epoch.

    `random_states`: of each rank inside an epoch.
    """

    contents: dict[str, Any]
    epoch: int
    step: int | None = None
    random_states: dict[int, dict[str, Any]] | None = None


@dataclass(frozen=True)
class Written:
    """A file that is complete on disk under its final name."""

    file: Path
    size_bytes: int
    sha256: str


def write(folder: Path, checkpoint: Checkpoint) -> Written:
    """Writes the checkpoint under a name of its own. Raises TypeError when the contents couldn't be read back."""
    import torch

    content = {
        "epochcast": 1,
        "contents": checkpoint.contents,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "random_states": checkpoint.random_states,
    }

    def save(file: Path) -> None:
        with file.open("wb") as stream:
            try:
                torch.save(content, stream)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # torch hides "No space left on device" behind its own error
                    raise error.__context__ from None
                raise
        _check_readable(file, checkpoint.contents)

    return _write_whole(folder / _free_name(folder, checkpoint), save)


def read(file: Path) -> Checkpoint:
    """The checkpoint in `file`, tensors on the CPU. Raises UnreadableCheckpoint."""
    import torch

    try:
        with zipfile.ZipFile(file) as archive:
            # torch.load doesn't compare checksums: a flipped bit would come back as a wrong weight (seen with 2.13).
            if (damaged := archive.testzip()) is not None:
                raise UnreadableCheckpoint(f"{damaged} is damaged")
        content = torch.load(file, map_location="cpu", weights_only=True)
        return Checkpoint(content["contents"], content["epoch"], content["step"], content["random_states"])
    except UnreadableCheckpoint:
        raise
    except Exception as error:  # zipfile, pickle and torch raise a dozen types on damaged bytes
        raise UnreadableCheckpoint(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def write_model(file: Path, model: "torch.nn.Module", metadata: dict[str, Any]) -> Written:
    """Writes the weights as safetensors, without what DDP or torch.compile wrapped around the model.

    The metadata is one JSON text under the key `epochcast`: safetensors writes several keys in random order, and
    equal runs should give equal files.
    """
    from safetensors.torch import save_model

    while (attribute := _WRAPPERS.get(type(model).__name__)) is not None:
        model = getattr(model, attribute)
    text = json.dumps(metadata, sort_keys=True)
    return _write_whole(file, lambda path: save_model(model, str(path), metadata={"epochcast": text}))


def _write_whole(file: Path, save: Callable[[Path], object]) -> Written:
    """Under a temporary name first, then fsync, then rename: the final name never shows half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        save(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            size_bytes = stream.tell()
        temporary.replace(file)
        _fsync_folder(file.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return Written(file, size_bytes, sha256)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_name(folder: Path, checkpoint: Checkpoint) -> str:
    """`ckpt-000003.pt`; a name is never used twice, because its first file may still be on its way to the store."""
    step = "" if checkpoint.step is None else f"-{checkpoint.step:08}"
    stem = f"ckpt-{checkpoint.epoch:06}{step}"
    name, number = f"{stem}.pt", 1
    while (folder / name).exists():
        number += 1
        name = f"{stem}.{number}.pt"
    return name


def _check_readable(file: Path, contents: dict[str, Any]) -> None:
    """Says at the first checkpoint, rather than after a crash, that one could not be loaded. Tensors stay on disk."""
    import torch

    try:
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise TypeError(
            f"a checkpoint of {', '.join(contents)} can't be read back safely: {str(error).splitlines()[0]} "
            "Keep tensors, numbers, text, and lists and dicts of them"
        ) from error
