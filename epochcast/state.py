"""What a checkpoint of a run holds: the objects given to `run.state`, by name."""

from collections.abc import Collection, Mapping
from typing import Any


class State:
    """Objects with `state_dict()` and `load_state_dict()`; dicts and lists stand for themselves."""

    def __init__(self) -> None:
        self._objects: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._objects)

    def add(self, objects: Mapping[str, Any]) -> None:
        """Raises TypeError for an object that `fill_from` couldn't fill later."""
        for name, value in objects.items():
            if not (isinstance(value, dict | list) or hasattr(value, "load_state_dict")):
                raise TypeError(
                    f"{name} is a {type(value).__name__}; state takes objects with state_dict() and load_state_dict(), "
                    f"dicts and lists: keep single values in a dict"
                )
        self._objects.update(objects)

    @property
    def objects(self) -> Mapping[str, Any]:
        return self._objects

    def contents(self) -> dict[str, Any]:
        if not self._objects:
            raise ValueError("nothing to checkpoint: name it with run.state(model=model, …) or run.checkpoint(model=…)")
        return plain(self._objects)

    def fill_from(self, contents: Mapping[str, Any], filled: Collection[str] = ()) -> None:
        """`filled`: names whose objects have theirs already. Raises ValueError when the checkpoint has other names."""
        objects = {name: value for name, value in self._objects.items() if name not in filled}
        if missing := [name for name in objects if name not in contents]:
            raise ValueError(
                f"the checkpoint holds {', '.join(contents)}, but not {', '.join(missing)}; "
                "give run.state the objects it was made with, or restart the job from scratch"
            )
        for name, value in objects.items():
            match value:
                case dict():
                    value.clear()
                    value.update(contents[name])
                case list():
                    value[:] = contents[name]
                case _:
                    value.load_state_dict(contents[name])


def plain(objects: Mapping[str, Any]) -> dict[str, Any]:
    """The objects' state dicts; what has none stands for itself."""
    return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in objects.items()}
