"""How a trainer ends: what its script has left is brought to an end, and then the process, not the interpreter."""

import atexit
import ctypes
import gc
import io
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

from epochcast import environment

CHECKOUT = Path(__file__).resolve().parents[1]
# Not the script's, even where it lies in the same folder: this code itself, and what is installed.
OURS = tuple(
    f"{folder}{os.sep}" for folder in (*(CHECKOUT / name for name in ("worker", "shared", "epochcast")), sys.prefix)
)

# Where the classes of DDP, FSDP, device meshes and process groups are defined.
PARALLEL = ("torch.distributed.", "torch.nn.parallel.")
_CALLED = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)

# What is never freed.
_kept: list[object] = []


def leave(code: int, folder: str) -> NoReturn:
    """Ends this process as Python would, but doesn't take Python apart: with torch loaded that takes 0.6 s of a job's
    time (2026-11-24), and frees what the kernel frees anyway.

    In Python's own order: the script's threads are waited for, what was registered with `atexit` is called, the objects
    of its own modules (those in `folder`) have their last word, and what open files hold is written.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if _is_one_of_many():
        _kept.extend(_holders_of_process_groups())
    _take_apart(folder)
    for thing in gc.get_objects():
        # By type: `isinstance` asks the object itself, and libraries have some that answer with a warning.
        if issubclass(type(thing), io.TextIOWrapper | io.BufferedWriter | io.BufferedRandom):
            _flush(thing)
    _flush(sys.stdout)
    _flush(sys.stderr)
    ctypes.CDLL(None).fflush(None)  # what native libraries write by way of C's own streams
    os._exit(code)


def _holders_of_process_groups() -> list[object]:
    """What holds process groups. A group that is freed waits for gloo's threads with Python's lock in its hand, for
    which they may wait (torch 2.13): once in some hundred ends of DDP in a script's module, a rank never ended."""
    things = gc.get_objects()
    kinds = {id(type(thing)): type(thing) for thing in things}
    holding = {
        number
        for number, kind in kinds.items()
        if any(str(base.__module__).startswith(PARALLEL) for base in kind.__mro__)
    }
    return [thing for thing in things if id(type(thing)) in holding]


def _is_one_of_many() -> bool:
    try:
        return environment.world_size() > 1
    except ValueError:  # the script's own number
        return True


def _take_apart(folder: str) -> None:
    """The script's modules, as Python takes all of them apart: an archive that one holds open is completed by this.

    First the files that they hold: the collector would end them in any order, what lies below before what still holds
    text. Then the modules that nothing else holds, whose objects so find them whole; then what the others hold.
    """
    found = [name for name, module in sys.modules.items() if _is_of(module, folder)]
    for name in found:
        _let_go(vars(sys.modules[name]), lambda value: issubclass(type(value), io.IOBase))
    modules = [weakref.ref(sys.modules.pop(name)) for name in found]
    gc.collect()
    # A thread of the script that Python would have frozen by now may still run, and miss what is taken from it.
    threading.excepthook = lambda *_: None
    left = [vars(module) for reference in modules if (module := reference()) is not None]
    for names in left:
        _let_go(names, lambda value: not issubclass(type(value), _CALLED))  # objects before what their methods call
    for names in left:
        _let_go(names, lambda _: True)
    gc.collect()


def _let_go(names: dict[str, Any], is_wanted: Callable[[Any], bool]) -> None:
    for name in [name for name, value in names.items() if name != "__builtins__" and is_wanted(value)]:
        names[name] = None


def _is_of(module: Any, folder: str) -> bool:
    file = getattr(module, "__dict__", {}).get("__file__")  # not by getattr: some modules import at any question
    return isinstance(file, str) and file.startswith(folder + os.sep) and not file.startswith(OURS)


def _flush(file: IO[Any] | io.IOBase | None) -> None:
    try:
        if file is not None and not file.closed:
            file.flush()
    except Exception as error:  # a full disk, a reader that is gone, a class of the script's: Python goes on
        os.write(2, f"a file could not be written at the end: {error!r}\n".encode("utf-8", "replace"))
