"""The fork server: a process that has imported torch, computes nothing, and forks the launchers of warm attempts.

`python -m worker.fork_server FD`, started by the agent, which asks over the SEQPACKET socket FD. Each launcher forks
its trainers, which so begin with everything imported: a first optimizer step milliseconds after the request, where a
new Python needs seconds. Bundles with an environment of their own start cold (worker/warm_start.py decides).
"""

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import random
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from shared.processes import hide_memory, name_process, show_memory
from worker import huge_pages
from worker.launcher import IGNORED, Order, enter, fork_spare_trainer, launch
from worker.leaving import leave
from worker.spare import MAX_DESCRIPTORS, MAX_PACKET, Spare, Waiting, fork_spare
from worker.trainer import main as train
from worker.trainer import platform_modules

READY, SPARE, SPARE_TRAINER = "ec-fork-server", "ec-spare", "ec-spare-train"
SPARE_AFTER_S = 0.25
# What a training script loads by itself, and what torch loads with the first optimizer, backward and checkpoint:
# without the latter a first step takes another second (a test compares).
PRELOADED = (
    "torch",
    "torch._dynamo",
    "torch.utils.data",
    "torch.utils.checkpoint",
    "torch.nn.parallel",
    "torch.distributed",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.optim.lr_scheduler",
    "torch.profiler._cupti_monitor",
    "torch.utils.serialization.config",
    "numpy",
    "safetensors.torch",
    "sklearn.datasets",
    "epochcast.checkpoints",
    "epochcast.randomness",
    "epochcast.run",
    "epochcast.sampling",
    "epochcast.training",
)


class NotForkSafe(Exception):
    """Raised when a child of this process could hang or see another's GPUs; the message says what was found."""


class BecomeTrainer(BaseException):
    """Raised in a new trainer, so that it leaves the server's and the launcher's frames before it runs."""


class ForkServer:
    """Answers one request at a time: `{"launcher": pid}`, or `{"refused": why}` and then it ends.

    Between requests it has the next launcher and its first trainer forked already: a first optimizer step 20 ms after
    the request instead of 28 (2026-11-24).
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._libraries = _libraries_with_threads()
        self._spare: Spare | None = None

    def serve(self) -> int:
        """Until the agent hangs up. Raises BecomeTrainer in each trainer."""
        while True:
            # Not at once after a start: the new attempt has the processor first.
            if self._spare is None and not select.select([self._control], [], [], SPARE_AFTER_S)[0]:
                self._fork_spare()
            packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_PACKET, MAX_DESCRIPTORS)
            if not packet:
                return 0
            try:
                check_fork_safe()
            except NotForkSafe as error:
                self._answer(refused=str(error))
                return 1
            launcher = self._start(packet, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            self._answer(launcher=launcher)

    def _start(self, packet: bytes, descriptors: Sequence[int]) -> int:
        spare, self._spare = self._spare, None
        if spare is not None and spare.take(packet, descriptors):
            return spare.pid
        launcher = os.fork()
        if launcher == 0:
            self._launch(packet, descriptors, None)
        return launcher

    def _fork_spare(self) -> None:
        try:
            check_fork_safe()
            launcher = fork_spare()
        except (NotForkSafe, OSError):
            return  # the next request is refused and says why, or forks for itself
        if isinstance(launcher, Spare):
            self._spare = launcher
        else:
            self._wait(launcher)

    def _wait(self, launcher: Waiting) -> None:
        """In the spare launcher, and in the trainer that it forks ahead; never returns."""
        try:
            self._control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            name_process(SPARE)
            trainer = fork_spare_trainer()
            if isinstance(trainer, Spare):
                packet, descriptors = launcher.order()
            else:
                name_process(SPARE_TRAINER)
                launcher.close()
                packet, descriptors = trainer.order(IGNORED)
        except BaseException as error:
            os.write(2, f"epochcast fork server: {error!r}\n".encode())
            os._exit(1)
        if isinstance(trainer, Spare):
            self._launch(packet, descriptors, trainer)
        request = take_environment(packet)
        order = Order.from_request(request, [-1, *descriptors])  # the lifeline is the launcher's alone
        enter(order, 0, order.streams[0])
        self._become(order)

    def _answer(self, **packet: Any) -> None:
        with contextlib.suppress(OSError):  # the agent is gone; the next look at the socket says so
            self._control.send(json.dumps(packet).encode())

    def _launch(self, packet: bytes, descriptors: Sequence[int], trainer: Spare | None) -> None:
        """In a launcher: never returns; the trainers that it forks leave by BecomeTrainer."""
        try:
            self._control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            request = take_environment(packet)

            def take_spare(streams: tuple[int, int]) -> int:
                return trainer.pid if trainer is not None and trainer.take(packet, streams) else 0

            code = launch(Order.from_request(request, descriptors), self._become, take_spare)
        except BecomeTrainer:
            raise
        except BaseException as error:
            os.write(2, f"epochcast launcher: {error!r}\n".encode())
            code = 1
        os._exit(code)

    def _become(self, order: Order) -> None:
        """In a trainer: what a new process would have, and a forked one has not."""
        show_memory()
        # As Python sets them when it starts; the launcher left the kernel's defaults for it to find.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        multiprocessing.current_process().authkey = os.urandom(32)
        random.seed()
        sys.modules["numpy"].random.seed()
        sys.modules["torch"].default_generator.seed()
        tempfile.tempdir = None  # TMPDIR is the attempt's own
        # Of every BLAS, and of each OpenMP that a library brought of its own.
        self._libraries.limit(limits=int(os.environ.get("OMP_NUM_THREADS", "1")))
        sys.argv = list(order.argv)
        raise BecomeTrainer


def take_environment(packet: bytes) -> dict[str, Any]:
    """The request in `packet`, whose environment becomes this process's."""
    request: dict[str, Any] = json.loads(packet)
    os.environ.clear()
    os.environ.update(request["env"])
    return request


def check_fork_safe() -> None:
    """Before each fork. Raises NotForkSafe.

    A child has only the thread that forked: what another one held stays locked for ever (a child forked after OpenMP
    had computed hung). And CUDA can't be used in a child once its parent has used it.
    """
    threads = os.listdir("/proc/self/task")
    if len(threads) != 1:
        raise NotForkSafe(f"the fork server has {len(threads)} threads; something computed or started one in it")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise NotForkSafe("CUDA is initialised in the fork server")
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith("/dev/nvidia"):
                raise NotForkSafe("a GPU's device is open in the fork server")


def _libraries_with_threads() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def preload() -> None:
    for name in PRELOADED:
        # What this torch hasn't got, or this host hasn't installed, costs time later and nothing else.
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    # What is there now is never looked at again by the collector, and so stays shared with every child.
    gc.collect()
    gc.freeze()
    huge_pages.collapse()


def main(arguments: list[str]) -> int:
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)  # ends with its agent
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here asks how a launcher ended: the kernel collects it
    control = socket.socket(fileno=int(arguments[0]))
    preload()
    server = ForkServer(control)
    platform_modules()
    name_process(READY)
    # Shared by the jobs of all owners, and it outlives them: none of them may look into it or change it.
    hide_memory()
    control.send(json.dumps({"ready": True}).encode())
    with contextlib.suppress(BecomeTrainer):
        return server.serve()
    # Out of its handling: a script's own errors would else all have happened "while handling" this one.
    folder = os.getcwd()
    return leave(train(), folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
