"""Why a trainer failed, typed: an exception inside it, or the way its process ended (contract §3)."""

import errno
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from epochcast.jobs import ErrorType, GpuMemory, JobError
from worker import out_of_memory
from worker.causes import Cause, causes, clean
from worker.frames import frames_of, syntax_of
from worker.hints import hint_for
from worker.oom_kills import OomKills

# Together they fit a packet of 64 KiB whatever they hold: JSON makes at most six bytes of one.
MESSAGE_BYTES, _DETAIL_BYTES, _TRACEBACK_BYTES = 500, 2_000, 6_000
_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
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
_LOADER_KILLED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.+?)\.|exited)")
_BROKEN = re.compile(r"(ConnectionResetError|EOFError|BrokenPipeError|BrokenProcessPool)\b")
_RANK_KILLED = re.compile(r"process \d+ terminated with signal (SIG\w+)")


def from_exception(
    error: BaseException,
    *,
    script: Path | None = None,
    folder: Path | None = None,
    is_recipe: bool = False,
    rank: int = 0,
    epoch: int | None = None,
    step: int | None = None,
) -> JobError:
    """The typed error of an exception that ended a script, without what only the device knows (`with_memory`).

    `script`: where the user's frames begin. `folder`: what its files are named from.
    """
    links = list(causes(error))
    killed = next((link for link in links if _killed_by(link) is not None), None)
    single = next((link for link in links if "BaseExceptionGroup" not in link.names), links[0])
    cause = next((link for link in links if _type_of(link, is_recipe) != "user_error"), killed or single)
    kind = _type_of(cause, is_recipe)
    message = cut(_message(kind, cause), MESSAGE_BYTES)
    return JobError(
        type=kind,
        message=message,
        detail=_detail(error, cause, message, is_recipe),
        retryable=kind in ("host_oom", "environment"),
        rank=rank,
        epoch=epoch,
        step=step,
        signal=_killed_by(cause),
        traceback=_cut_front(frames_of(error, script, folder), _TRACEBACK_BYTES),
    )


def with_memory(
    error: JobError,
    measured: GpuMemory | None,
    *,
    who: str | None = None,
    gpu: str | None = None,
    batch_size: int | None = None,
    batch_named: str = "batch_size",
) -> JobError:
    """A CUDA out-of-memory error with its numbers: those of its message, else those measured after it."""
    text = error.detail or ""
    oom = out_of_memory.read(text)
    told = oom.memory.model_dump(exclude_none=True)
    known = {**(measured.model_dump(exclude_none=True) if measured else {}), **told}
    if known:
        oom = out_of_memory.CudaOom(GpuMemory.model_validate(known), oom.device, oom.limit_gib, oom.others)
    advice = out_of_memory.verdict(oom, batch_size, batch_named, text=text, who=who)
    return error.model_copy(update={"gpu": gpu, "memory": oom.memory if known else None, "verdict": advice})


def from_exit(
    returncode: int,
    *,
    kernel_killed: bool = False,
    rank: int | None = None,
    epoch: int | None = None,
    step: int | None = None,
    last_lines: Sequence[str] = (),
) -> JobError:
    """The typed error of a trainer that ended without saying why. `returncode`: negative for a signal.

    `kernel_killed`: whether the kernel killed it because memory ran out (`OomKills`). `last_lines`: of its stderr.
    """
    where = {"rank": rank, "epoch": epoch, "step": step}
    if returncode >= 0:
        return JobError.model_validate(
            {
                "type": "user_error",
                "message": f"the script exited with code {returncode}",
                "detail": _said_last(last_lines) or "it printed nothing on stderr; its log may name the reason",
                "exit_code": returncode,
                **where,
            }
        )
    name = _signal_name(-returncode)
    if -returncode == signal.SIGKILL and kernel_killed:
        content: dict[str, object] = _KERNELS_KILL
    else:
        content = {
            "type": "user_error",
            "message": f"the script was killed by {name}",
            "detail": "\n".join(filter(None, (_SIGNAL_HINTS.get(name), _said_last(last_lines)))) or None,
        }
    return JobError.model_validate({**content, "signal": name, **where})


def _said_last(lines: Sequence[str]) -> str:
    return _cut_front("\n".join(["the last lines on its stderr:", *lines]), _DETAIL_BYTES) if lines else ""


def with_kills(error: JobError, kills: OomKills) -> JobError:
    """The same, or out of host memory if the kernel killed the helper process whose death was the failure.

    torch sees such a death in one of three ways, whichever comes first: the signal, a process that is gone, or a lost
    connection.
    """
    loader = _LOADER_KILLED.search(error.message)
    unexplained = error.signal is None and (loader is not None or _BROKEN.match(error.message) is not None)
    if error.type != "user_error" or not (error.signal == "SIGKILL" or unexplained):
        return error
    if not kills.has_killed([int(pid) for pid in re.findall(r"\d+", loader[1])] if loader else []):
        return error
    whom = "a DataLoader worker" if loader else "a process of the script"
    message = f"the host ran out of memory: the kernel killed {whom}"
    return error.model_copy(update={**_KERNELS_KILL, "message": message, "signal": "SIGKILL"})


_KERNELS_KILL = {
    "type": "host_oom",
    "message": "the host ran out of memory: the kernel killed the script",
    "detail": "ask for less host memory (smaller data, fewer loader processes) or for a larger host",
    "retryable": True,
}
_SIGNAL_HINTS = {
    "SIGSEGV": "a crash in native code; the log shows where, if Python could still say",
    "SIGBUS": "a crash in native code, often because shared memory (/dev/shm) is full",
    "SIGABRT": "native code gave up; its reason is in the log",
    "SIGKILL": "someone or something killed it; the kernel says of no out-of-memory kill then",
    "SIGXFSZ": "a file grew over the size that is allowed here",
    "SIGXCPU": "it used up the CPU time that is allowed here",
    "SIGTERM": "someone or something asked it to end; the platform did not",
}
_KILL_NAMES = {"Killed": "SIGKILL", "Bus error": "SIGBUS", "Segmentation fault": "SIGSEGV", "Aborted": "SIGABRT"}


def _killed_by(cause: Cause) -> str | None:
    """The signal by which a helper process of the script ended, in the words of torch."""
    if (loader := _LOADER_KILLED.search(cause.text)) is not None and loader[2]:
        return _KILL_NAMES.get(loader[2], loader[2])
    rank = _RANK_KILLED.search(cause.text)
    return rank[1] if rank else None


def _type_of(cause: Cause, is_recipe: bool) -> ErrorType:
    text, names = cause.text, cause.names
    # Names, not classes: torch need not be imported here, and other processes send their errors as text.
    raised_by_torch = "RuntimeError" in names or "OutOfMemoryError" in names
    if "OutOfMemoryError" in names or (raised_by_torch and out_of_memory.is_cuda_oom(text)):
        return "cuda_oom"
    if "MemoryError" in names or (raised_by_torch and out_of_memory.is_host_oom(text)):
        return "host_oom"
    if cause.number == errno.ENOMEM:
        return "host_oom"
    if "FloatingPointError" in names or "returned nan values in its" in text:  # torch's anomaly detection
        return "diverged"
    if cause.number in _DISK_ERRNOS:
        return "environment"
    if raised_by_torch and any(fault in text for fault in _DEVICE_FAULTS):
        return "environment"
    if is_recipe and "ImportError" in names:  # our own script is complete: the host lacks something
        return "environment"
    return "user_error"


def _message(kind: ErrorType, cause: Cause) -> str:
    match kind:
        case "cuda_oom":
            return "CUDA out of memory"  # the document's words
        case "host_oom":
            words = out_of_memory.host_oom_words(cause.text, cause.first_line)
            return f"the host ran out of memory: {words or cause.type_name}"
        case _:
            said = f"{cause.type_name}: {cause.first_line}" if cause.first_line else cause.type_name
            return f"{said} (in {cause.where})" if cause.where else said


def _detail(error: BaseException, cause: Cause, message: str, is_recipe: bool) -> str | None:
    """What the message doesn't say: the rest of the text, the line with the mistake, what to do."""
    if (shown := syntax_of(error)) is not None:
        return cut(shown, _DETAIL_BYTES)
    # What the message says whole already isn't said twice.
    rest = cause.text.strip() if cause.text.strip() not in message else ""
    if rest and cause.where and cause.where not in message:
        rest = f"in {cause.where}: {rest}"
    said = [rest, hint_for(error, is_recipe) or ""]
    return cut("\n".join(part for part in said if part), _DETAIL_BYTES) or None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def cut(text: str, size: int) -> str:
    """At most `size` bytes of UTF-8, with a mark where something is missing."""
    return _cut(clean(text), size, "end")


def _cut_front(text: str, size: int) -> str:
    return _cut(text, size, "front")


def _cut(text: str, size: int, where: Literal["front", "end"]) -> str:
    encoded = text.encode()
    if len(encoded) <= size:
        return text
    if where == "front":
        return "… " + encoded[len(encoded) - size + 4 :].decode("utf-8", "ignore")
    return encoded[: size - 4].decode("utf-8", "ignore") + " …"
