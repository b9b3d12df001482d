"""Why a trainer failed, typed: an exception inside it, or the way its process ended (contract §3)."""

import errno
import linecache
import signal
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from epochcast.jobs import ErrorType, JobError
from worker import out_of_memory

LAST_FRAMES = 20
_MESSAGE_CHARACTERS, _DETAIL_CHARACTERS, _TRACEBACK_CHARACTERS = 500, 2_000, 6_000
_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Faults of driver or device, which no script causes.
_DEVICE_FAULTS = (
    "no CUDA-capable device",
    "CUDA driver version is insufficient",
    "Found no NVIDIA driver",
    "CUDA unknown error",
    "uncorrectable ECC error",
    "GPU is lost",
    "system not yet initialized",
)


def from_exception(
    error: BaseException,
    *,
    script: Path | None = None,
    is_recipe: bool = False,
    rank: int = 0,
    epoch: int | None = None,
    step: int | None = None,
    batch_size: int | None = None,
    batch_named: str = "batch_size",
    gpu: str | None = None,
) -> JobError:
    """The typed error of an exception that ended a script. `script`: where the user's frames begin."""
    cause = next((link for link in _causes(error) if _type_of(link, is_recipe) != "user_error"), error)
    kind = _type_of(cause, is_recipe)
    message = _cut(_message(kind, cause), _MESSAGE_CHARACTERS)
    failed = JobError(
        type=kind,
        message=message,
        # What the message says whole already isn't said twice.
        detail=None if str(cause) in message else _cut(str(cause), _DETAIL_CHARACTERS),
        retryable=kind in ("host_oom", "environment"),
        rank=rank,
        epoch=epoch,
        step=step,
        traceback=_their_frames(error, script),
    )
    if kind == "cuda_oom":
        failed.gpu = gpu
        failed.memory = out_of_memory.read_memory(str(cause))
        failed.verdict = out_of_memory.verdict(failed.memory, batch_size, batch_named) if failed.memory else None
    return failed


def from_exit(
    returncode: int, *, oom_kills: int = 0, rank: int | None = None, epoch: int | None = None, step: int | None = None
) -> JobError:
    """The typed error of a trainer that ended without saying why. `returncode`: negative for a signal.

    `oom_kills`: by how much `out_of_memory.count_oom_kills` grew while the trainer ran.
    """
    where = {"rank": rank, "epoch": epoch, "step": step}
    if returncode >= 0:
        return JobError.model_validate(
            {
                "type": "user_error",
                "message": f"the script exited with code {returncode}",
                "detail": "see the last lines of its log for the reason",
                "exit_code": returncode,
                **where,
            }
        )
    name = _signal_name(-returncode)
    if -returncode == signal.SIGKILL and oom_kills > 0:
        message = "the host ran out of memory: the kernel killed the script"
        detail = "ask for less host memory (smaller data, fewer loader processes) or for a larger host"
        content = {"type": "host_oom", "message": message, "detail": detail, "retryable": True}
    else:
        content = {
            "type": "user_error",
            "message": f"the script was killed by {name}",
            "detail": _SIGNAL_HINTS.get(name),
        }
    return JobError.model_validate({**content, "signal": name, **where})


_SIGNAL_HINTS = {
    "SIGSEGV": "a crash in native code; the log shows where, if Python could still say",
    "SIGBUS": "a crash in native code, often because shared memory (/dev/shm) is full",
    "SIGABRT": "native code gave up; its reason is in the log",
    "SIGKILL": "someone or something killed it; the kernel counted no out-of-memory kill meanwhile",
}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised `from`: a wrapper's own type says little. Not what it was raised *while*
    handling: a script that survived one error and then made another failed by the other."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _type_of(error: BaseException, is_recipe: bool) -> ErrorType:
    text = str(error)
    torch = sys.modules.get("torch")
    out_of_gpu = getattr(torch, "OutOfMemoryError", ())
    if isinstance(error, out_of_gpu) or (isinstance(error, RuntimeError) and out_of_memory.is_cuda_oom(text)):
        return "cuda_oom"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and out_of_memory.is_host_oom(text)):
        return "host_oom"
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return "host_oom"
    if isinstance(error, FloatingPointError) or "returned nan values in its" in text:  # torch's anomaly detection
        return "diverged"
    if isinstance(error, OSError) and error.errno in _DISK_ERRNOS:
        return "environment"
    if isinstance(error, RuntimeError) and any(fault in text for fault in _DEVICE_FAULTS):
        return "environment"
    if is_recipe and isinstance(error, ImportError):  # our own script is complete: the host lacks something
        return "environment"
    return "user_error"


def _message(kind: ErrorType, error: BaseException) -> str:
    first_line = next(iter(str(error).splitlines()), "")
    match kind:
        case "cuda_oom":
            return "CUDA out of memory"  # the document's words
        case "host_oom":
            return f"the host ran out of memory: {first_line or type(error).__name__}"
        case _:
            return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def _their_frames(error: BaseException, script: Path | None) -> str:
    """The traceback from the script on; when it is long, without the frames of libraries in the middle."""
    summary = traceback.TracebackException.from_exception(error, lookup_lines=False, compact=True)
    linecache.checkcache()
    link: traceback.TracebackException | None = summary
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        link.stack = traceback.StackSummary.from_list(_shortened(list(link.stack), script))
        link = link.__cause__ or link.__context__
    return _cut_front("".join(summary.format()), _TRACEBACK_CHARACTERS)


def _shortened(frames: list[traceback.FrameSummary], script: Path | None) -> list[traceback.FrameSummary]:
    if script is not None:
        begin = next((place for place, frame in enumerate(frames) if frame.filename == str(script)), None)
        # Without a frame of the script it never ran: a syntax error, say, and then our own frames explain nothing.
        frames = [] if begin is None and _is_ours(frames) else frames[begin or 0 :]
    if len(frames) > LAST_FRAMES:
        frames = [frame for frame in frames[:-1] if not _is_library(frame.filename)][1 - LAST_FRAMES :] + frames[-1:]
    return frames


def _is_ours(frames: list[traceback.FrameSummary]) -> bool:
    return bool(frames) and Path(frames[0].filename).parent == Path(__file__).parent


def _is_library(filename: str) -> bool:
    return "site-packages" in filename or filename.startswith(("<frozen", sysconfig.get_path("stdlib")))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 2] + " …"


def _cut_front(text: str, characters: int) -> str:
    return text if len(text) <= characters else "… " + text[2 - characters :]
