"""Finding the newest checkpoint that can be read, and what is done with it: one file, or parts of several ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epochcast.checkpoints import Checkpoint, HalfLoaded, UnreadableCheckpoint, read
from epochcast.parts import is_sharded
from epochcast.reporting import short
from epochcast.state import State

Use = Callable[[Path, Checkpoint], dict[str, Any]]


@dataclass(frozen=True)
class Loaded:
    """`unreadable`: why newer ones were passed over."""

    checkpoint: Checkpoint
    contents: dict[str, Any]
    unreadable: list[str]


def load_newest(paths: Sequence[Path], rank: int, use: Use, warn: Callable[[str], None]) -> Loaded | None:
    """`paths`: newest first. `warn` is called in rank 0. Raises HalfLoaded when nothing older could undo the damage."""
    unreadable: list[str] = []
    damage: HalfLoaded | None = None
    for path in paths:
        try:
            found = read(path, rank)
            return Loaded(found, use(path, found), unreadable)
        except UnreadableCheckpoint as error:
            damage = error if isinstance(error, HalfLoaded) else damage
            unreadable.append(short(f"{path.name}: {error}"))
            if rank == 0:
                warn(f"Checkpoint {path.name} can't be read ({error}); trying the one before it")
    if damage is not None:
        raise damage
    return None


def filling(state: State) -> Use:
    """Loads a checkpoint into the objects of `state`."""

    def fill(path: Path, found: Checkpoint) -> dict[str, Any]:
        if path.is_dir():
            from epochcast import sharded

            state.fill_from(found.contents, sharded.fill(path, state.objects))
        elif is_sharded(state.objects):
            raise ValueError(f"{path.name} is not in parts, as the model is now; restart the job from scratch")
        else:
            state.fill_from(found.contents)
        return found.contents

    return fill


def whole_contents(path: Path, found: Checkpoint) -> dict[str, Any]:
    if not path.is_dir():
        return found.contents
    from epochcast import sharded

    return {**sharded.whole(path), **found.contents}
