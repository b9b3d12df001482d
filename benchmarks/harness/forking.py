"""A host's fork server by itself, asked for trainers as the agent asks it: what a warm start costs on the host."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.alone import printed_times
from benchmarks.harness.job_file import write_job_file
from worker.process_tree import boottime_s
from worker.warm_start import ForkServerKeeper
from worker.workspace import TRAINER, host_environment, template_environment

READY_S = 120.0
LICENCE_S = 60.0


@contextmanager
def fork_server(threads: int) -> Iterator[ForkServerKeeper]:
    """Ready to fork when it is yielded. Raises RuntimeError when it doesn't get ready."""
    keeper = ForkServerKeeper(template_environment(threads))
    try:
        deadline = time.monotonic() + READY_S
        keeper.ensure()
        while not keeper.is_ready:
            if not keeper.is_loading or time.monotonic() > deadline:
                raise RuntimeError("the fork server did not get ready")
            keeper.watch()
            time.sleep(0.01)
        yield keeper
    finally:
        keeper.end()


def run(keeper: ForkServerKeeper, script: Path, threads: int, folder: Path) -> tuple[float, dict[str, Any]]:
    """When the server was asked (CLOCK_MONOTONIC seconds), and what the script printed about itself.

    The script's reports go to a socket that nobody reads. Raises RuntimeError when it fails.
    """
    socket_path = folder / "socket"
    socket_path.unlink(missing_ok=True)
    lifeline, far_lifeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    (stdout, far_stdout), (stderr, far_stderr) = os.pipe(), os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, lifeline, open(stdout) as output:
        listener.bind(str(socket_path))
        listener.listen()
        environment = host_environment() | {
            "EPOCHCAST_JOB": str(write_job_file(folder, script, threads)),
            "EPOCHCAST_SOCKET": str(socket_path),
            "OMP_NUM_THREADS": str(threads),
            "TMPDIR": str(folder),
        }
        request = {
            "env": environment,
            "licence": boottime_s() + LICENCE_S,
            "cwd": str(folder),
            "argv": TRAINER,
            "first_rank": 0,
            "ranked": False,
        }
        asked = time.monotonic()
        keeper.fork(request, [far_lifeline.fileno(), far_stdout, far_stderr], set())
        far_lifeline.close()
        for descriptor in (far_stdout, far_stderr):
            os.close(descriptor)
        lines = output.readlines()
        with open(stderr) as errors:
            complaints = errors.read()
        if _exit_code(lifeline) != 0:
            raise RuntimeError(f"{script} failed: {complaints}")
    return asked, printed_times(lines)


def _exit_code(lifeline: socket.socket) -> int | None:
    """The launcher's last word, after which nothing of the tree is left."""
    lifeline.settimeout(LICENCE_S)
    while packet := lifeline.recv(4096):
        said = json.loads(packet)
        if "exit" in said:
            code: int | None = said["exit"]
            return code
    return None
