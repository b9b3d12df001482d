"""Which way imports run: each package imports only what its row of the table allows, and importing does nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
OURS = {"epochcast", "shared", "api", "worker"}

# Complete: whoever installs epochcast for its client or SDK gets these and no more.
EPOCHCAST_MAY = {"epochcast", "pydantic", "httpx2", "websockets", "orjson", "typer", "rich", "plotext"}
# What `epochcast` may import inside functions, because whoever calls them has it: scripts that train.
IN_TRAINERS = {"torch", "numpy", "safetensors"}

NEVER = {
    "epochcast": {"api", "worker", "shared", "fastapi", "celery", "sqlalchemy", "redis"},
    "shared": {"api", "worker", "torch", "fastapi", "uvicorn"},
    "api": {"worker", "torch"},
    "worker": {"api", "fastapi", "uvicorn"},
}
TORCH_IN_WORKER = {"fork_server", "trainer", "failures", "recipes"}


def python_files(package: str) -> list[Path]:
    return sorted(path for path in (CHECKOUT / package).rglob("*.py") if "node_modules" not in path.parts)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Each imported top-level name, and whether it is imported when the module is."""

    def visit(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            inside = at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            match child:
                case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                    continue
                case ast.Import():
                    yield from ((alias.name.split(".")[0], at_import) for alias in child.names)
                case ast.ImportFrom(level=0, module=str(module)):
                    yield module.split(".")[0], at_import
                case _:
                    yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text()), True)


def imported(package: str) -> Iterator[tuple[str, str, bool]]:
    for path in python_files(package):
        for name, at_import in imports(path):
            yield str(path.relative_to(CHECKOUT)), name, at_import


@pytest.mark.parametrize("package", sorted(NEVER))
def test_package_imports_nothing_that_it_must_not(package: str) -> None:
    assert python_files(package)
    assert [(file, name) for file, name, _ in imported(package) if name in NEVER[package]] == []


def test_epochcast_imports_only_what_its_wheel_brings() -> None:
    allowed = EPOCHCAST_MAY | set(sys.stdlib_module_names)
    for file, name, at_import in imported("epochcast"):
        in_function = name in IN_TRAINERS and not at_import
        assert name in allowed or in_function, f"{file} imports {name}, which `pip install epochcast` does not bring"


def test_only_the_training_side_of_the_worker_imports_torch() -> None:
    for path in python_files("worker"):
        place = path.relative_to(CHECKOUT / "worker").parts[0].removesuffix(".py")
        if "torch" in {name for name, _ in imports(path)}:
            assert place in TORCH_IN_WORKER, f"worker/{place} imports torch"


def run(script: str, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *options, "-c", script],
        cwd=CHECKOUT,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_gateway_leaves_torch_out() -> None:
    ran = run("import api.app, sys; sys.exit('torch' in sys.modules)")
    assert ran.returncode == 0, ran.stderr


def test_supervisor_side_of_the_worker_leaves_torch_out() -> None:
    ran = run("import worker.app, worker.tasks, worker.agent, worker.supervisor, sys; sys.exit('torch' in sys.modules)")
    assert ran.returncode == 0, ran.stderr


def test_import_epochcast_is_light() -> None:
    heavy = ("pydantic", "httpx2", "websockets", "typer", "rich", "torch", "numpy")
    ran = run(f"import epochcast, sys; print([name for name in {heavy!r} if name in sys.modules])")
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr


# Watches what a module does while it is imported: no connection, no child process, nothing of our settings read.
WATCHED_IMPORT = """
import importlib, os, sys

class Environment(type(os.environ)):
    def __getitem__(self, key):
        if str(key).startswith("EPOCHCAST_"):
            raise SystemExit(f"reads {key} while being imported")
        return super().__getitem__(key)

os.environ.__class__ = Environment

def hook(event, arguments):
    if event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.fork"):
        raise SystemExit(f"{event} while being imported")

sys.addaudithook(hook)
for name in sys.argv[1:]:
    importlib.import_module(name)
    import logging
    if logging.getLogger().handlers:
        raise SystemExit(f"{name} sets up logging while being imported")
"""


def modules(package: str) -> list[str]:
    """Every module of the package but entry points, migrations (Alembic runs those) and scripts that train."""
    names = []
    for path in python_files(package):
        parts = path.relative_to(CHECKOUT).with_suffix("").parts
        if parts[-1] == "__main__" or "migrations" in parts or parts[:2] == ("worker", "recipes"):
            continue
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


@pytest.mark.parametrize("package", sorted(OURS))
def test_importing_does_nothing(package: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED_IMPORT, *modules(package)],
        cwd=CHECKOUT,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "EPOCHCAST_PORT": "not a port"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
