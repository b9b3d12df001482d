"""`up`, `token` and `doctor`: they run the platform's own modules, which live in a checkout or an image."""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import epochcast
from epochcast.cli.options import Json
from epochcast.errors import UsageError

token_app = typer.Typer(
    help="Make tokens, where the server's secret is.",
    epilog="Example: epochcast token create --sub alice",
    no_args_is_help=True,
)


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: epochcast up --port 8000 --no-auth")(up)
    app.command(epilog="Example: epochcast doctor")(doctor)
    token_app.command(
        epilog="Example: epochcast token create --sub alice --scope jobs:read --scope jobs:write --days 7"
    )(create)
    app.add_typer(token_app, name="token")


DataDir = Annotated[Path, typer.Option(metavar="FOLDER", help="Where the platform keeps its data.")]


def up(
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="0: any free one (default: EPOCHCAST_PORT, else 8000).", show_default=False
        ),
    ] = None,
    data_dir: DataDir = Path(".epochcast"),
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Ask for no token (loopback only).")] = False,
    slots: Annotated[int | None, typer.Option(min=0, help="How many jobs without GPU may train at once.")] = None,
    as_json: Json = False,
) -> None:
    """Run the whole platform on this machine until Ctrl-C: gateway, worker and their own Redis.

    With --json its log goes to stderr, and stdout gets one line when it is ready: url, token and pid.
    """
    arguments = ["--data-dir", str(data_dir)]
    arguments += ["--port", str(port)] if port is not None else []
    arguments += ["--no-auth"] if no_auth else []
    arguments += ["--slots", str(slots)] if slots is not None else []
    _root_of("shared.local")
    if as_json:
        _announce_when_ready(data_dir / "local.json")
    become("shared.local", arguments)


def create(
    sub: Annotated[str, typer.Option(metavar="OWNER", help="Whose jobs the token may handle.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="SCOPE", help="What it may do, such as jobs:read; give it several times."),
    ] = None,
    days: Annotated[float, typer.Option(min=0, help="How long it is valid; 30 at most.")] = 7,
    data_dir: DataDir = Path(".epochcast"),
    as_json: Json = False,
) -> None:
    """Make a token and print it."""
    scopes = [word for name in scope or [] for word in ("--scope", name)]
    arguments = ["create", "--sub", sub, *scopes, "--days", f"{days:g}", "--data-dir", str(data_dir)]
    become("shared.tokens", [*arguments, *_json(as_json)])


def doctor(as_json: Json = False) -> None:
    """Check what the platform needs on this machine, and say how to get what is missing."""
    become("shared.doctor", _json(as_json))


def _announce_when_ready(state: Path) -> None:
    """Leaves a process that prints `state` once this one (then the platform) has written it, or ends with it.

    Not a parent that waits: this process has to become the platform, so that signals reach it alone and once.
    """
    platform = os.getpid()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return
    if os.fork():  # the platform must not be left with a child that it doesn't know
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while _is_alive(platform):
        content = _content(state)
        if content.get("pid") == platform:
            print(json.dumps(content), flush=True)
            break
        time.sleep(0.1)
    os._exit(0)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _content(state: Path) -> dict[str, Any]:
    try:
        content = json.loads(state.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _json(as_json: bool) -> list[str]:
    return ["--json"] if as_json else []


def become(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by `python -m module`: Ctrl-C, signals, terminal and exit code are then its own.

    Raises UsageError where only the wheel is installed. `-P` and PYTHONPATH: a folder named `shared` in the
    current one must not be taken for ours.
    """
    root = _root_of(module)
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(
        sys.executable,
        [sys.executable, "-P", "-m", module, *arguments],
        {**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def _root_of(module: str) -> Path:
    """The folder that holds the server's packages: the checkout of this very package, else one on sys.path."""
    package, name = module.split(".")
    places = [str(Path(epochcast.__file__).resolve().parent.parent), *(path for path in sys.path if path)]
    for place in places:
        spec = PathFinder.find_spec(package, [place])
        if spec and spec.submodule_search_locations and _is_ours(Path(place), name):
            return Path(place)
    raise UsageError(
        "this command runs the server, and only the client is installed here; run it from a checkout of epochcast "
        "(make setup) or in its image. To use a server that runs elsewhere, give --url or EPOCHCAST_URL"
    )


def _is_ours(root: Path, name: str) -> bool:
    return all((root / path).is_file() for path in (f"shared/{name}.py", "shared/event_log.py", "api/__init__.py"))
