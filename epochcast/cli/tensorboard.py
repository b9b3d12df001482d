"""`tensorboard`: the metrics of jobs as event files, live, and TensorBoard over them where it is installed."""

import asyncio
import shutil
import socket
import subprocess
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epochcast.cli.options import Json, Token, Url, async_client, complete_job
from epochcast.cli.output import plain, print_json
from epochcast.errors import UsageError

if TYPE_CHECKING:
    from epochcast.following import Notice

USUAL_PORT = 6006
END_S = 10.0
INSTALL = "pip install 'epochcast[tensorboard]'"


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: epochcast tensorboard 42 43")(tensorboard)


def tensorboard(
    jobs: Annotated[
        list[int],
        typer.Argument(metavar="JOB...", min=1, max=2**63 - 1, help="The jobs' numbers.", autocompletion=complete_job),
    ],
    logdir: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where the event files go, a folder for each job.")
    ] = Path("epochcast-tensorboard"),
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="TensorBoard's port (default: 6006, else any).", show_default=False),
    ] = None,
    only_files: Annotated[
        bool, typer.Option("--only-files", help="Don't start TensorBoard; end when the jobs have ended.")
    ] = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Write jobs' metrics as TensorBoard event files, from their first epoch on and live, and start TensorBoard.

    Needs no TensorBoard to write them. Ctrl-C ends it; the jobs keep running and the files stay. Written again, a
    job's files begin anew.
    """
    try:
        asyncio.run(_follow(list(dict.fromkeys(jobs)), logdir, port, only_files, url, token, as_json))
    except KeyboardInterrupt:
        print(f"\nthe jobs keep running; the event files stay in {logdir}", file=sys.stderr)
        raise typer.Exit(130) from None


async def _follow(
    jobs: list[int],
    logdir: Path,
    port: int | None,
    only_files: bool,
    url: str | None,
    token: str | None,
    as_json: bool,
) -> None:
    from epochcast.curves import follow, run_name

    async with async_client(url, token) as server:
        found = [await server.job(job_id) for job_id in jobs]
        folders = {job.job_id: logdir / run_name(job) for job in found}
        _make(logdir)
        viewer = None if only_files else _start(logdir, port)
        try:
            _announce(folders, logdir, viewer, only_files, as_json)
            following = [follow(server, job, folders[job.job_id], on_notice=_notice) for job in found]
            until = [] if viewer is None else [viewer.ended()]
            await asyncio.gather(_all(following, as_json), *until)
        finally:
            if viewer is not None:
                viewer.stop()


async def _all(following: Sequence[Coroutine[None, None, None]], as_json: bool) -> None:
    await asyncio.gather(*following)
    if not as_json:
        print("every job has ended, and every epoch is written", flush=True)


def _make(logdir: Path) -> None:
    try:
        logdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{logdir} can't be written ({error.strerror}); choose another with --logdir") from error


def _notice(notice: "Notice") -> None:
    from epochcast.cli.board import notice_text

    if (text := notice_text(notice)) is not None:
        print(plain(text), file=sys.stderr)


def _announce(
    folders: dict[int, Path], logdir: Path, viewer: "_Viewer | None", only_files: bool, as_json: bool
) -> None:
    if as_json:
        runs = {str(job_id): str(folder) for job_id, folder in folders.items()}
        print_json({"logdir": str(logdir), "runs": runs, "url": viewer and viewer.url})
        sys.stdout.flush()
        return
    for job_id, folder in folders.items():
        print(f"job {job_id} is written to {folder}")
    if viewer is not None:
        print(f"TensorBoard: {viewer.url}   (Ctrl-C ends it)", flush=True)
    elif not only_files:
        print(
            f"TensorBoard isn't installed here; install it with: {INSTALL}, then: tensorboard --logdir {logdir}",
            flush=True,
        )


# --- TensorBoard


class _Viewer:
    """TensorBoard as a process of ours; what it says is kept in a file beside the runs."""

    def __init__(self, command: list[str], logdir: Path, port: int) -> None:
        self.url = f"http://localhost:{port}/"
        self._log = logdir / "tensorboard.log"
        arguments = ["--logdir", str(logdir), "--port", str(port), "--reload_interval", "2"]
        with self._log.open("wb") as output:
            # A session of its own: Ctrl-C reaches this process, which then ends TensorBoard.
            self._process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def ended(self) -> None:
        """Waits for its end. Raises UsageError: nobody asked for that."""
        code = await asyncio.to_thread(self._process.wait)
        raise UsageError(f"TensorBoard ended with exit code {code}; {self._log} says why")

    def stop(self) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
            return
        self._process.kill()
        self._process.wait()


def _start(logdir: Path, port: int | None) -> _Viewer | None:
    """None: it isn't installed, neither here nor on the path."""
    if find_spec("tensorboard") is not None:
        command = [sys.executable, "-m", "tensorboard.main"]
    elif (script := shutil.which("tensorboard")) is not None:
        command = [script]
    else:
        return None
    return _Viewer(command, logdir, port or _free_port())


def _free_port() -> int:
    """The port that everybody knows, else any."""
    with socket.socket() as usual, suppress(OSError):
        usual.bind(("127.0.0.1", USUAL_PORT))
        return USUAL_PORT
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return int(any_port.getsockname()[1])
