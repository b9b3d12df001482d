"""The process in which PyTorch runs: `python -m worker.trainer` runs the job's script and says why, if it fails.

A recipe or a bundle's entrypoint: it runs as `__main__`, without the platform's packages in its way.
"""

import builtins
import faulthandler
import functools
import io
import os
import sys
import traceback
import types
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from epochcast import environment, integrations, job_file, training
from epochcast.integrations.link import has_spoken
from epochcast.job_file import JobFile
from epochcast.jobs import JobError
from epochcast.reporting import AttemptSocket, Disconnected, short
from shared.processes import name_process
from worker import failures, gpu_memory, oom_snapshot, out_of_memory, stacks
from worker.environments import EnvironmentFailed, environment_for, is_inside
from worker.leaving import leave

PLATFORM_PACKAGES = ("api", "shared", "worker")
CHECKOUT = Path(__file__).resolve().parents[1]
# Before the first line of any script, and so never a file beside it; and the name by which a script speaks to us.
_LOADED_BY_ANY_PYTHON = {
    "__main__", "_collections_abc", "abc", "builtins", "codecs", "encodings", "epochcast", "genericpath", "io", "os",
    "posixpath", "site", "stat", "sys", "zipimport",
}  # fmt: skip


def main() -> int:
    """The exit code: the script's own, or 1 when an exception ended it."""
    job = job_file.from_environment()
    if job is None or (job.recipe is None and job.script is None):
        print("EPOCHCAST_SOCKET and EPOCHCAST_JOB must name a supervisor and a job with a script", file=sys.stderr)
        return 2
    name_process("ec-trainer")
    own = os.getpid()
    os.environ.update(job.env)
    environment.keep()
    faulthandler.enable()  # a crash in native code leaves a stack in the log
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a printed line is a log line at once
    script = job.script or script_of(str(job.recipe))
    try:
        stacks.answer(Path(environment.socket()).parent)
        enter_environment(job)
    except (EnvironmentFailed, OSError) as error:
        _report_environment(error)
        return 1
    leave_platform()
    integrations.observe()
    folder = Path.cwd()
    try:
        limit_threads(job.threads)
        if job.script is not None:
            sys.path.insert(0, str(script.parent))  # as `python train.py` does
            prefer_modules_in(script.parent)
        sys.argv = [str(script), *job.args]
        run_as_main(script)
    except SystemExit as leaving:
        return _left(leaving, job, script, folder, is_child=os.getpid() != own)
    except Disconnected as error:
        print(error, file=sys.stderr)
        return 1
    except BaseException as error:
        if os.getpid() != own:
            _print(error, script)  # a child that the script forked: the script hears its exit code, and goes on or not
            return 1
        _report(error, job, script, folder)
        return 1
    if os.getpid() == own:
        integrations.script_ended()
    return 0


def run_as_main(script: Path) -> None:
    """As `python script` does. Afterwards `__main__` is still the script: what its threads and `atexit` functions
    pickle is looked up there."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=str(script), __builtins__=builtins, __cached__=None)
    with io.open_code(str(script)) as file:
        source = file.read()
    sys.modules["__main__"] = main
    exec(compile(source, str(script), "exec", dont_inherit=True), main.__dict__)


def prefer_modules_in(folder: Path) -> None:
    """A module beside the script is what the script's `import` of that name means, though this process may have
    imported another of the name already; those who have that one keep it."""
    for entry in os.scandir(folder):
        name = entry.name.partition(".")[0] if entry.is_file() else entry.name
        is_module = entry.name.endswith((".py", *EXTENSION_SUFFIXES)) or os.path.isfile(f"{entry.path}/__init__.py")
        if is_module and name in sys.modules and name not in _LOADED_BY_ANY_PYTHON:
            for loaded in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
                del sys.modules[loaded]


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
    checkout = str(CHECKOUT)
    sys.path[:] = [entry for entry in sys.path if entry and os.path.realpath(entry) != checkout]
    for name in platform_modules():
        sys.modules.pop(name, None)


@functools.cache
def platform_modules() -> tuple[str, ...]:
    """Those that are loaded. Asked before a trainer is forked: to look at every name there is would copy all the pages
    that they lie in, 10 ms of a start."""
    return tuple(name for name in sys.modules if name.partition(".")[0] in PLATFORM_PACKAGES)


def limit_threads(threads: int | None) -> None:
    """Sums are rounded in another order with another thread count, so the job's own is part of its result."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _left(leaving: SystemExit, job: JobFile, script: Path, folder: Path, *, is_child: bool) -> int:
    """`sys.exit(3)` is the script's own word; `sys.exit("text")` says why, and that is worth more than a code 1."""
    if leaving.code is None or isinstance(leaving.code, int):
        code = _as_python_exits(leaving.code or 0)
        if code == 0 and not is_child:
            integrations.script_ended()
        return code
    print(leaving.code, file=sys.stderr)
    if is_child:
        return 1
    message = failures.cut(str(leaving.code), failures.MESSAGE_BYTES)
    _send(_typed(leaving, job, script, folder).model_copy(update={"message": message, "detail": None, "exit_code": 1}))
    return 1


def _as_python_exits(code: int) -> int:
    """What is left of a number as a process's exit code: eight bits, and of one that is no C long, 255."""
    return code & 0xFF if -(2**63) <= code < 2**63 else 255


def _report_environment(error: Exception) -> None:
    print(error, file=sys.stderr)
    detail = error.detail if isinstance(error, EnvironmentFailed) else None
    message = failures.cut(str(error), failures.MESSAGE_BYTES)
    _send(JobError(type="environment", message=message, detail=detail, retryable=True, rank=0))


def _report(error: BaseException, job: JobFile, script: Path, folder: Path) -> None:
    failed = _typed(error, job, script, folder)
    if job.recipe is not None and type(error).__name__ == "DataError":
        # A recipe's word on the user's data: where in our code it was said helps nobody.
        print(f"ERROR: {error}", file=sys.stderr)
        failed = failed.model_copy(update={"traceback": None})
    else:
        _print(error, script)  # the log has all of it, the typed error its end
    _send(failed)
    if failed.type == "cuda_oom" and oom_snapshot.is_recorded():
        _keep_snapshot(job.out_dir, failed.rank or 0)


def _print(error: BaseException, script: Path) -> None:
    """As Python does, which knows nothing of the frames that called the script."""
    own = error.__traceback__
    while own is not None and own.tb_frame.f_code.co_filename != str(script):
        own = own.tb_next
    if own is None and not isinstance(error, SyntaxError):  # the script's own mistake has no frame yet
        own = error.__traceback__
    try:
        traceback.print_exception(type(error), error, own)
    except Exception as fault:  # a script's own exception class, or a stderr that it closed
        _complain(f"the traceback can't be printed: {type(fault).__name__}")


def _typed(error: BaseException, job: JobFile, script: Path, folder: Path) -> JobError:
    """Whatever the exception's class does when it is looked at: a job must not fail without a word."""
    try:
        return _read(error, job, script, folder)
    except Exception as fault:
        detail = f"it could not be read further: {type(fault).__name__} while it was looked at"
        return JobError(type="user_error", message=type(error).__name__, detail=detail, rank=_rank())


def _rank() -> int:
    """As the launcher set it, unless the script has put something else there."""
    try:
        return max(0, environment.rank())
    except ValueError:
        return 0


def _read(error: BaseException, job: JobFile, script: Path, folder: Path) -> JobError:
    run = training.current_run()
    failed = failures.from_exception(
        error,
        script=script,
        folder=folder,
        is_recipe=job.recipe is not None,
        rank=_rank(),
        epoch=run.epoch or None if run else None,
        step=run.broke_off_at if run else None,
    )
    return _with_memory(failed, job.params if run is None else run.params) if failed.type == "cuda_oom" else failed


def _with_memory(failed: JobError, params: dict[str, Any]) -> JobError:
    gpu = gpu_memory.look(out_of_memory.read(failed.detail or "").device)
    named = "micro_batch_size" if params.get("micro_batch_size") else "batch_size"
    batch_size = params.get(named)
    return failures.with_memory(
        failed,
        gpu.memory if gpu else None,
        who=gpu_memory.names_of(gpu.others) if gpu else None,
        gpu=gpu.name if gpu else None,
        batch_size=batch_size if isinstance(batch_size, int) else None,
        batch_named=named,
    )


def _keep_snapshot(out_dir: Path, rank: int) -> None:
    """After the error itself is on its way: what goes wrong here costs nothing else."""
    try:
        _say(oom_snapshot.write(out_dir, rank) | {"rank": rank})
    except oom_snapshot.NoSnapshot as error:
        _complain(f"no snapshot of the GPU's allocator could be kept: {error}")


def _complain(message: str) -> None:
    """Into the job's log, past the script's own stderr."""
    _say({"type": "log", "rank": _rank(), "level": "ERROR", "message": short(message)})


def _send(failed: JobError) -> None:
    _say({"type": "failure", "rank": failed.rank, "error": failed.model_dump(mode="json", exclude={"host"})})


def _say(packet: dict[str, Any]) -> None:
    """Over the script's own connection, so that it arrives after the reports before it; over a new one where there is
    none or the script has closed it."""
    run = training.current_run()
    try:
        if run is not None:
            return run.pass_on(packet)
        if (link := has_spoken()) is not None:
            return link.pass_on(packet)
    except Disconnected:
        pass
    try:
        AttemptSocket(environment.socket()).send(packet)
    except Disconnected as gone:
        print(gone, file=sys.stderr)


if __name__ == "__main__":
    folder = os.getcwd()
    leave(main(), folder)
