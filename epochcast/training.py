"""Inside a training script: `run = epochcast.init()` (contract §5); everything else is asked of the run."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epochcast import environment, job_file, log_records
from epochcast.log_records import LogHandler
from epochcast.reporting import AttemptSocket, Disconnected, Terminal
from epochcast.run import Run

__all__ = ["Disconnected", "LogHandler", "Run", "current_run", "init"]

_current: Run | None = None


def init(
    params: Mapping[str, Any] | None = None,
    *,
    total_epochs: int = 1,
    seed: int = 0,
    out_dir: str | Path = "epochcast-run",
) -> Run:
    """This process's run; called again, the same one.

    Inside a job the job decides, and `params` only fills in what the job doesn't name. Outside one the arguments are
    what the run consists of: reports are printed, files go to `out_dir`, and an interrupted run there can be resumed.
    Raises Disconnected when there is a job but its supervisor is gone.
    """
    global _current
    run = current_run()
    if run is None:  # also in a forked rank, which speaks for itself over its own connection
        job = job_file.from_environment()
        if job is not None:
            run = Run(job.with_defaults(params or {}), AttemptSocket(environment.socket()))
            log_records.install()
        else:
            run = Run(job_file.local(params or {}, total_epochs, seed, Path(out_dir)), Terminal(total_epochs))
        _current = run
        if run.params.get("record_memory") is True:
            run.record_memory()
    return run


def current_run() -> Run | None:
    """The run that `init` made in this process, if it was called."""
    if _current is None or _current.is_closed or _current.pid != os.getpid():
        return None
    return _current
