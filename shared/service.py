"""One child of `up`: a Python module run as its own process, its output prefixed, started again when it dies."""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from pathlib import Path

from shared.processes import dies_with_parent

CHECKOUT = Path(__file__).parent.parent
MAX_BACKOFF_S = 30.0
# A service that lived this long has recovered: its next restart is quick again.
RECOVERED_S = 60.0
_MAX_LINE_BYTES = 64 * 1024


class Terminal:
    """Where `up` writes. A reader that went away (closed terminal, `| head`) must not keep it from its work."""

    def say(self, line: str) -> None:
        try:
            print(line, flush=True)
        except OSError:
            return


class Backoff:
    """The pause before each restart: 1 s, doubling to 30 s, and 1 s again after a minute of health."""

    def __init__(self) -> None:
        self._next_s = 1.0
        self._started = time.monotonic()

    def started(self) -> None:
        self._started = time.monotonic()

    def pause_s(self) -> float:
        if time.monotonic() - self._started > RECOVERED_S:
            self._next_s = 1.0
        pause = self._next_s
        self._next_s = min(2 * pause, MAX_BACKOFF_S)
        return pause


class Service:
    """`python -m <module>` in the checkout. Dies with this process, whatever ends it."""

    def __init__(self, name: str, module: str, terminal: Terminal, *arguments: str) -> None:
        self.name = name
        self.process: Process | None = None
        self._command = (sys.executable, "-m", module, *arguments)
        self._environment: dict[str, str] = {}
        self._terminal = terminal
        self._output: asyncio.Task[None] | None = None

    async def start(self, environment: dict[str, str]) -> None:
        """`environment`: what the process gets over ours."""
        self._environment = environment
        # Its own session: Ctrl-C reaches only `up`, which then stops its children in order.
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=CHECKOUT,
            env={**os.environ, **self._environment, "PYTHONUNBUFFERED": "1"},
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
            preexec_fn=dies_with_parent(),
        )
        self._output = asyncio.create_task(self._copy_output(self.process))

    async def ended(self) -> str:
        """Waits for the process and says how it ended: `exit code 1`, `signal SIGKILL`."""
        assert self.process is not None
        code = await self.process.wait()
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    async def keep_running(self) -> None:
        """Starts the service again whenever it ends, until this task is cancelled."""
        backoff = Backoff()
        while True:
            how = await self.ended()
            pause_s = backoff.pause_s()
            self._terminal.say(f"{self.name} ended unexpectedly ({how}); it starts again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            await self.start(self._environment)
            backoff.started()

    async def stop(self, grace_s: float, hurry: asyncio.Event) -> None:
        """SIGTERM; SIGKILL after `grace_s`, or at once when `hurry` is set."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        end, hurried = asyncio.create_task(self.process.wait()), asyncio.create_task(hurry.wait())
        await asyncio.wait({end, hurried}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not end.done():
            self._terminal.say(f"{self.name} did not stop in time; killing it (pid {self.process.pid})")
            self.process.kill()
        await end
        if self._output is not None:
            # A grandchild that still holds the pipe must not hold us.
            await asyncio.wait({self._output}, timeout=1)
            self._output.cancel()

    async def _copy_output(self, process: Process) -> None:
        assert process.stdout is not None
        rest = b""
        while block := await process.stdout.read(_MAX_LINE_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._show(line)
        if rest:
            self._show(rest)

    def _show(self, line: bytes) -> None:
        if text := line.decode(errors="replace").rstrip():
            self._terminal.say(f"{self.name:<7} | {text}")
