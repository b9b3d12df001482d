"""The whole platform on one machine, in the foreground: what `epochcast up` runs."""

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pydantic import SecretStr

from shared import processes
from shared import settings as settings_module
from shared.data_folder import DataFolder, DataFolderError, StateFiles, state_home
from shared.embedded import free_port
from shared.service import Terminal
from shared.settings import Settings, SettingsError
from shared.stack import Stack, StartFailed

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def resolve_settings(options: argparse.Namespace, folder: DataFolder) -> Settings:
    """The environment's settings with the command line's over them, the kept secret, and a port that is free.

    Raises SettingsError, StartFailed.
    """
    settings = settings_module.from_environment()
    port = settings.port if options.port is None else options.port
    changes = {
        "port": _checked_port(settings.bind, port) if port else free_port(),
        "slots": settings.slots if options.slots is None else options.slots,
        "auth": "none" if options.no_auth else settings.auth,
        "secret": settings.secret or SecretStr(folder.secret()),
    }
    return settings.model_copy(update=changes)


def _checked_port(bind: str, port: int) -> int:
    try:
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        socket.create_server((bind, port), family=family).close()
    except OSError as error:
        raise StartFailed(
            f"port {port} on {bind} can't be used ({error.strerror}); choose another, such as --port {port + 1}, "
            "or --port 0 for any free one"
        ) from error
    return port


async def serve(folder: DataFolder, settings: Settings, state_files: StateFiles) -> int:
    """Starts, announces, runs until a signal, stops. The exit code."""
    terminal = Terminal()
    stack = Stack(folder, settings, state_files, terminal)
    _listen(stack, asyncio.get_running_loop())
    try:
        terminal.say(f"starting epochcast in {folder.path}")
        if await stack.unless_stopped(stack.start()):
            stack.announce()
            await stack.unless_stopped(stack.run())
        return 0
    except StartFailed as error:
        _complain(error)
        return 1
    finally:
        await stack.stop()
        for sign in STOP_SIGNALS:  # everything is stopped: one that comes now has nothing left to say
            signal.signal(sign, signal.SIG_IGN)
        terminal.say("stopped")


def _listen(stack: Stack, loop: asyncio.AbstractEventLoop) -> None:
    def tell(_number: int, _frame: FrameType | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stack.ask_to_stop)

    # Not loop.add_signal_handler: a signal after the loop's end would kill what is just leaving in order.
    for sign in STOP_SIGNALS:
        signal.signal(sign, tell)


def _complain(error: Exception) -> None:
    with contextlib.suppress(OSError):
        print(f"epochcast up: {error}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="epochcast up", description="Runs the whole platform on this machine until Ctrl-C."
    )
    parser.add_argument("--port", type=_port, help="0: any free port (default: EPOCHCAST_PORT, else 8000)")
    parser.add_argument("--data-dir", type=Path, default=Path(".epochcast"), help="kept between runs (.epochcast)")
    parser.add_argument("--temporary", action="store_true", help="a data folder of its own, removed at the end")
    parser.add_argument("--no-auth", action="store_true", help="no tokens; loopback only")
    parser.add_argument("--slots", type=_slots, help="CPU jobs at once (default: half the cores)")
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; a port is a number from 0 to 65535")
    return int(text)


def _slots(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of slots; slots are 0 to 10000")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    os.umask(0o077)  # a data folder that was there before may be open to others; what we put into it is not
    processes.hide_memory()
    processes.adopt_orphans()
    if options.temporary:
        options.data_dir = Path(tempfile.mkdtemp(prefix="epochcast-"))
    folder = DataFolder(options.data_dir.expanduser().absolute())
    places = [folder.path] if options.temporary else [folder.path, state_home(os.environ)]
    state_files = StateFiles(tuple(place / "local.json" for place in places))
    try:
        with folder.lock():
            settings = resolve_settings(options, folder)
            return asyncio.run(serve(folder, settings, state_files))
    except (DataFolderError, SettingsError, StartFailed) as error:
        _complain(error)
        return 1
    finally:
        if options.temporary:
            shutil.rmtree(folder.path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
