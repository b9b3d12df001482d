"""The command line: `epochcast …`. Exit codes: 0 ok, 1 the job failed, 2 usage, 3 the server said no, 4 unreachable."""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import epochcast
from epochcast.cli import fleet, history, jobs, models, server, submit, tensorboard, watch
from epochcast.errors import DamagedDownload, EpochcastError, IncompatibleServer, Refused, Unreachable, UsageError

app = typer.Typer(
    name="epochcast",
    help="Submit PyTorch training jobs, watch them live, fetch their models.",
    epilog="Start with: epochcast up, then: epochcast submit --recipe image-classifier --watch",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (server, submit, watch, jobs, history, tensorboard, models, fleet):
    part.add_to(app)


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"epochcast {epochcast.__version__}")
        raise typer.Exit


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The exit code of one command; what went wrong is said on stderr, never as a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without the sparkline's letters shows `?` instead
            stream.reconfigure(errors="replace")
    try:
        app(arguments, prog_name="epochcast")
    except EpochcastError as error:
        print(f"epochcast: {error}", file=sys.stderr)
        return _exit_code(error)
    except OSError as error:
        # Standard output is full or closed; everything else that a command opens says so by an error of ours.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (the interpreter flushes it once more at its end)
        print(f"epochcast: the output can't be written: {error.strerror}", file=sys.stderr)
        return 2
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _exit_code(error: EpochcastError) -> int:
    match error:
        case UsageError():
            return 2
        case Refused() | IncompatibleServer() | DamagedDownload():
            return 3
        case Unreachable():
            return 4
        case _:
            return 1
