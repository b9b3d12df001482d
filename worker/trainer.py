"""The process in which PyTorch runs: `python -m worker.trainer` runs the job's script and says why, if it fails.

A recipe or a bundle's entrypoint: it runs as `__main__`, without the platform's packages in its way.
"""

import faulthandler
import io
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

from epochcast import integrations, job_file, training
from epochcast.integrations.link import has_spoken
from epochcast.job_file import JobFile
from epochcast.jobs import JobError
from epochcast.reporting import AttemptSocket, Disconnected
from shared.processes import name_process
from worker import failures
from worker.environments import EnvironmentFailed, environment_for, is_inside

PLATFORM_PACKAGES = ("api", "shared", "worker")


def main() -> int:
    """The exit code: the script's own, or 1 when an exception ended it."""
    job = job_file.from_environment()
    if job is None or (job.recipe is None and job.script is None):
        print("EPOCHCAST_SOCKET and EPOCHCAST_JOB must name a supervisor and a job with a script", file=sys.stderr)
        return 2
    name_process("ec-trainer")
    os.environ.update(job.env)
    faulthandler.enable()  # a crash in native code leaves a stack in the log
    faulthandler.register(signal.SIGUSR2)  # and so does the supervisor's question what a silent script is doing
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a printed line is a log line at once
    script = job.script or script_of(str(job.recipe))
    try:
        enter_environment(job)
    except (EnvironmentFailed, OSError) as error:
        _report_environment(error)
        return 1
    leave_platform()
    integrations.observe()
    try:
        limit_threads(job.threads)
        if job.script is not None:
            sys.path.insert(0, str(script.parent))  # as `python train.py` does
        sys.argv = [str(script), *job.args]
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as leaving:
        return _left(leaving, job, script)
    except Disconnected as error:
        print(error, file=sys.stderr)
        return 1
    except BaseException as error:
        _report(error, job, script)
        return 1
    integrations.script_ended()
    return 0


def script_of(recipe: str) -> Path:
    """The file of a recipe. Its name was checked against the catalogue when the job was submitted."""
    return Path(__file__).parent / "recipes" / f"{recipe.replace('-', '_')}.py"


def enter_environment(job: JobFile) -> None:
    """Goes on in the environment that the bundle requires: the same process, another Python. Raises EnvironmentFailed,
    OSError."""
    if job.bundle is None or job.environments is None or is_inside(job.environments):
        return
    python = environment_for(Path.cwd(), job.environments, job.bundle)
    if python is not None:
        os.execv(python, [str(python), "-P", "-m", "worker.trainer"])


def leave_platform() -> None:
    """Takes the checkout off the path and its packages out of `sys.modules`: a script may have its own `shared`.

    What is already imported here keeps working; `epochcast` stays, and finds its own modules by its own path.
    """
    checkout = Path(__file__).resolve().parents[1]
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != checkout]
    for name in list(sys.modules):
        if name.partition(".")[0] in PLATFORM_PACKAGES:
            del sys.modules[name]


def limit_threads(threads: int | None) -> None:
    """Sums are rounded in another order with another thread count, so the job's own is part of its result."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _left(leaving: SystemExit, job: JobFile, script: Path) -> int:
    """`sys.exit(3)` is the script's own word; `sys.exit("text")` says why, and that is worth more than a code 1."""
    if leaving.code is None or isinstance(leaving.code, int):
        if not leaving.code:
            integrations.script_ended()
        return leaving.code or 0
    print(leaving.code, file=sys.stderr)
    _send(_typed(leaving, job, script).model_copy(update={"message": str(leaving.code)[:500], "exit_code": 1}))
    return 1


def _report_environment(error: Exception) -> None:
    print(error, file=sys.stderr)
    detail = error.detail if isinstance(error, EnvironmentFailed) else None
    _send(JobError(type="environment", message=str(error)[:500], detail=detail, retryable=True, rank=0))


def _report(error: BaseException, job: JobFile, script: Path) -> None:
    failed = _typed(error, job, script)
    if job.recipe is not None and type(error).__name__ == "DataError":
        # A recipe's word on the user's data: where in our code it was said helps nobody.
        print(f"ERROR: {error}", file=sys.stderr)
        failed = failed.model_copy(update={"traceback": None})
    else:
        traceback.print_exception(error)  # the log has all of it, the typed error its end
    _send(failed)


def _typed(error: BaseException, job: JobFile, script: Path) -> JobError:
    run = training.current_run()
    params = job.params if run is None else run.params
    named = "micro_batch_size" if params.get("micro_batch_size") else "batch_size"
    batch_size = params.get(named)
    return failures.from_exception(
        error,
        script=script,
        is_recipe=job.recipe is not None,
        rank=int(os.environ.get("RANK", "0")),
        epoch=run.epoch or None if run else None,
        step=run.broke_off_at if run else None,
        batch_size=batch_size if isinstance(batch_size, int) else None,
        batch_named=named,
        gpu=_gpu_name(),
    )


def _send(failed: JobError) -> None:
    """Over the run's own connection, so that it arrives after the reports before it."""
    error = failed.model_dump(mode="json", exclude={"host"})
    try:
        run = training.current_run()
        if run is not None:
            run.fail(error)
        elif (link := has_spoken()) is not None:
            link.fail(error)
        else:
            AttemptSocket(os.environ["EPOCHCAST_SOCKET"]).send({"type": "failure", "rank": failed.rank, "error": error})
    except Disconnected as gone:
        print(gone, file=sys.stderr)


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    name: str = torch.cuda.get_device_name()
    return name


if __name__ == "__main__":
    sys.exit(main())
