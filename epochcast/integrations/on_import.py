"""Does something to a module right after a script has imported it; a script that doesn't pays a dict look-up."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Then = Callable[[Any], None]


def when_imported(name: str, then: Then) -> None:
    """Calls `then(module)` when `name` has been imported, at once if it has been. Its failure breaks no import."""
    if name in sys.modules:
        _call(then, sys.modules[name])
        return
    watch = next((finder for finder in sys.meta_path if isinstance(finder, _Watch)), None)
    if watch is None:
        watch = _Watch()
        sys.meta_path.insert(0, watch)
    watch.waiting[name] = then


class _Watch(MetaPathFinder):
    """Finds nothing itself: it asks the finders behind it, and follows up on the modules that are waited for."""

    def __init__(self) -> None:
        self.waiting: dict[str, Then] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        then = self.waiting.get(fullname)
        if then is None:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                if spec.loader is not None:
                    _follow(spec.loader, then)
                return spec
        return None


def _follow(loader: Loader, then: Then) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        _call(then, module)

    setattr(loader, "exec_module", exec_module)  # noqa: B010 - of this one loader, which is made for one import


def _call(then: Then, module: ModuleType) -> None:
    try:
        then(module)
    except Exception as error:  # another version of a library may look different: the script still trains
        print(f"epochcast: {module.__name__} is not observed: {type(error).__name__}: {error}", file=sys.stderr)
