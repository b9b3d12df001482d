"""The Celery side of a worker host: the task, the pool's rules, and the agent that is kept alive beside it."""

import os
import signal
import subprocess
import sys
from typing import Any

import structlog
from celery import Celery, bootsteps, signals

from shared.celery_app import TRAIN, make_app
from shared.processes import dies_with_parent, end_with_parent, hide_memory
from shared.settings import Settings
from worker import gpus
from worker.agent import NAME_TAKEN
from worker.slots import slots_of
from worker.tasks import train
from worker.workspace import CHECKOUT

logger = structlog.get_logger(__name__)

# Beyond one process for each slot and GPU: a finished job's process may still wait for Redis to take its last event.
SPARE_PROCESSES = 2
CHECK_AGENT_S = 1.0
AGENT_ENDS_S = 10.0


class AgentKeeper:
    """Starts the agent as a process of its own, again when it dies, and ends it after the last attempt."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._draining = False

    def start_first(self) -> int | None:
        """Waits until the host is registered. Returns an exit code when it can't be (name taken), else None."""
        ready, told = os.pipe()
        self._spawn("--first", "--warm", f"--ready-fd={told}", pass_fds=(told,))
        os.close(told)
        try:
            # As long as SQL is away there is nothing to do but wait; EOF means that the agent ended.
            if os.read(ready, 16):
                return None
        finally:
            os.close(ready)
        assert self._process is not None
        return self._process.wait()

    def check(self) -> None:
        """From Celery's timer: an agent that died is started again."""
        if self._process is None or self._draining or self._process.poll() is None:
            return
        if self._process.returncode == NAME_TAKEN:
            logger.error("another worker has taken this host's name; this one shuts down")
            os.kill(os.getpid(), signal.SIGTERM)
            return
        logger.error("the agent died and is started again", code=self._process.returncode)
        self._spawn("--warm")

    def drain(self) -> None:
        """The worker shuts down: the agent tells every supervisor."""
        self._draining = True
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        else:
            self._spawn("--drain")

    def end(self) -> None:
        """After the last attempt: waits for the agent's own end."""
        if self._process is None:
            return
        if not self._draining:
            self.drain()
        try:
            self._process.wait(AGENT_ENDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _spawn(self, *arguments: str, pass_fds: tuple[int, ...] = ()) -> None:
        # The main thread creates it: PDEATHSIG fires when the creating thread ends.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker.agent", *arguments],
            cwd=CHECKOUT,
            pass_fds=pass_fds,
            preexec_fn=dies_with_parent(),
            process_group=0,
        )


def make_worker_app(settings: Settings, keeper: AgentKeeper) -> tuple[Celery, int]:
    """The Celery application of this host and its number of pool processes."""
    app = make_app(settings.broker_url.get_secret_value(), publisher=False)

    @app.task(name=TRAIN, ignore_result=True, shared=False)  # type: ignore[untyped-decorator]
    def run(job_id: int) -> None:
        train(settings, job_id)

    app.steps["consumer"].add(_keeping(keeper))
    signals.worker_shutting_down.connect(lambda **_: keeper.drain(), weak=False)
    signals.worker_process_init.connect(_prepare_process, weak=False)
    return app, slots_of(settings) + len(gpus.list_gpus()) + SPARE_PROCESSES


def _keeping(keeper: AgentKeeper) -> type[bootsteps.StartStopStep]:
    class KeepAgent(bootsteps.StartStopStep):  # type: ignore[misc]
        """Celery's event loop checks on the agent; the timers are cleared at each reconnect and set anew here."""

        def start(self, parent: Any) -> None:
            parent.timer.call_repeatedly(CHECK_AGENT_S, keeper.check)

    return KeepAgent


def _prepare_process(**_: object) -> None:
    """In each pool process: its supervisor ends with the worker, and only the agent tells it to drain."""
    end_with_parent()
    hide_memory()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, signal.SIG_IGN)
