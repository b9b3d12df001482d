"""Exceptions and exits become typed errors that name the cause, whatever they are wrapped in."""

import concurrent.futures
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from epochcast.jobs import GpuMemory, JobError
from tests.listening import CHECKOUT
from tests.worker import oom_messages
from tests.worker.oom_messages import CUDA_OOM
from worker.failures import from_exception, from_exit, with_kills, with_memory
from worker.frames import LAST_FRAMES
from worker.oom_kills import OomKills


def raised(throw: Callable[[], object]) -> BaseException:
    try:
        throw()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def throwing(error: BaseException) -> Callable[[], NoReturn]:
    def throw() -> NoReturn:
        raise error

    return throw


def failed(error: BaseException, is_recipe: bool = False) -> JobError:
    return from_exception(raised(throwing(error)), is_recipe=is_recipe)


def test_cuda_oom_has_the_documents_message_the_numbers_and_a_verdict() -> None:
    oom = from_exception(raised(throwing(torch.OutOfMemoryError(CUDA_OOM))), epoch=3, step=17)
    error = with_memory(oom, None, batch_size=128, batch_named="micro_batch_size", gpu="NVIDIA H200")
    assert (error.type, error.message, error.retryable) == ("cuda_oom", "CUDA out of memory", False)
    assert error.memory is not None
    assert error.memory.total_gib == 139.8
    assert error.verdict == "batch too large by about 1.1x: try micro_batch_size <= 96"
    assert error.detail is not None
    assert error.detail.startswith("CUDA out of memory. Tried to allocate 20.00 GiB")
    assert (error.gpu, error.epoch, error.step, error.rank) == ("NVIDIA H200", 3, 17, 0)


def test_numbers_that_the_message_lacks_are_those_measured_after_it() -> None:
    measured = GpuMemory(free_gib=0.1, total_gib=80.0, allocated_gib=70.0, reserved_gib=79.0, others_gib=0.0)
    error = with_memory(failed(RuntimeError(oom_messages.CUBLAS)), measured, batch_size=64)
    assert error.memory == measured
    assert error.verdict == "cuBLAS found no memory beside what torch holds (79.0 of 80.0 GiB): try batch_size <= 32"
    told = with_memory(failed(torch.OutOfMemoryError(CUDA_OOM)), measured)
    assert told.memory is not None
    assert told.memory.free_gib == 1.2, "the message was written when it happened"
    assert with_memory(failed(RuntimeError(oom_messages.DRIVER)), None).memory is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError(oom_messages.DRIVER), "cuda_oom"),
        (torch.AcceleratorError(oom_messages.DRIVER), "cuda_oom"),
        (RuntimeError(oom_messages.CUBLAS), "cuda_oom"),
        (RuntimeError(oom_messages.CUDNN), "cuda_oom"),
        (RuntimeError(oom_messages.TRITON), "cuda_oom"),
        (torch.distributed.DistBackendError(oom_messages.NCCL), "cuda_oom"),
        (torch.OutOfMemoryError(oom_messages.ASYNC), "cuda_oom"),
        (torch.OutOfMemoryError("anything"), "cuda_oom"),
        (MemoryError(), "host_oom"),
        (RuntimeError(oom_messages.CPU), "host_oom"),
        (RuntimeError(oom_messages.SHARED_MEMORY), "host_oom"),
        (RuntimeError("std::bad_alloc"), "host_oom"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host_oom"),
        (OSError(errno.ENOSPC, "No space left on device"), "environment"),
        (OSError(errno.EFBIG, "File too large"), "environment"),
        (RuntimeError("Found no NVIDIA driver on your system."), "environment"),
        (RuntimeError("CUDA error: device-side assert triggered"), "user_error"),
        (RuntimeError("Function 'MulBackward0' returned nan values in its 0th output."), "diverged"),
        (FloatingPointError("overflow encountered in multiply"), "diverged"),
        (ValueError("the text says CUDA out of memory"), "user_error"),
        (KeyError("lr"), "user_error"),
        (KeyboardInterrupt(), "user_error"),
        (AssertionError(), "user_error"),
    ],
)
def test_each_kind_of_exception_has_its_type(error: BaseException, kind: str) -> None:
    assert failed(error).type == kind


def test_memory_that_torch_can_not_get_on_the_cpu_is_host_oom_with_its_size() -> None:
    error = from_exception(raised(lambda: torch.empty(10**15)))
    assert (error.type, error.retryable) == ("host_oom", True)
    assert error.message == "the host ran out of memory: tried to allocate 3,725,290.3 GiB"
    full = failed(RuntimeError(oom_messages.SHARED_MEMORY))
    assert full.message == "the host ran out of memory: its shared memory, /dev/shm, is full"


def test_missing_module_is_the_hosts_fault_only_in_a_recipe() -> None:
    assert failed(ModuleNotFoundError("No module named 'sklearn'"), is_recipe=True).type == "environment"
    assert failed(ModuleNotFoundError("No module named 'nmupy'")).type == "user_error"


def test_a_missing_module_or_file_comes_with_what_to_do() -> None:
    missing = failed(ModuleNotFoundError("No module named 'cv2'", name="cv2"))
    assert "(opencv-python-headless) in requirements.txt" in (missing.detail or "")
    part = failed(ModuleNotFoundError("No module named 'torch.nothing'", name="torch.nothing"))
    assert "torch is there, but has no nothing" in (part.detail or "")
    relative = failed(ImportError("attempted relative import with no known parent package"))
    assert "instead of `from .network import" in (relative.detail or "")
    file = from_exception(raised(lambda: open("data/train.csv")))  # noqa: SIM115
    assert file.message == "FileNotFoundError: [Errno 2] No such file or directory: 'data/train.csv'"
    assert "the job's own folder" in (file.detail or "")


def test_a_syntax_error_shows_file_line_and_caret() -> None:
    error = from_exception(raised(lambda: compile("x = 1\nif x\n  pass\n", "/attempt/code/model.py", "exec")))
    assert error.message == "SyntaxError: expected ':' (model.py, line 2)"
    assert error.detail is not None
    assert error.detail.splitlines()[0].strip() == 'File "/attempt/code/model.py", line 2'


def wrapped_by(link: Callable[[BaseException], BaseException]) -> BaseException:
    try:
        raise torch.OutOfMemoryError(CUDA_OOM)
    except RuntimeError as error:
        inner = error
    return raised(throwing(link(inner)))


def _from(error: BaseException) -> BaseException:
    outer = ValueError("step failed")
    outer.__cause__ = error
    return outer


def _repeating(error: BaseException) -> BaseException:
    outer = RuntimeError(f"training failed: {error}")
    outer.__context__ = error
    return outer


def _compiled(error: BaseException) -> BaseException:
    from torch._dynamo.exc import InternalTorchDynamoError

    outer = InternalTorchDynamoError("backend raised")
    outer.inner_exception = error  # type: ignore[attr-defined]  # as BackendCompilerFailed and InductorError have it
    return outer


def _grouped(error: BaseException) -> BaseException:
    return BaseExceptionGroup("unhandled errors in a TaskGroup", [ValueError("first"), error])


CAUGHT = f"""Caught OutOfMemoryError in pin memory thread for device 1.
Original Traceback (most recent call last):
  File "torch/utils/data/_utils/pin_memory.py", line 35, in do_one_step
    data = pin_memory(data, device)
torch.OutOfMemoryError: {CUDA_OOM}
"""


def test_what_another_thread_raised_is_told_by_its_own_words() -> None:
    error = failed(torch.OutOfMemoryError(CAUGHT))
    assert (error.type, error.message) == ("cuda_oom", "CUDA out of memory")
    assert (error.detail or "").startswith("in pin memory thread for device 1: CUDA out of memory. Tried")
    caught = CAUGHT.replace("torch.OutOfMemoryError: CUDA", "AcceleratorError: CUDA").replace(
        "OutOfMemory", "Accelerator"
    )
    assert failed(torch.AcceleratorError(caught)).type == "cuda_oom"


@pytest.mark.parametrize("link", [_from, _repeating, _compiled, _grouped])
def test_an_oom_is_found_in_what_wraps_it(link: Callable[[BaseException], BaseException]) -> None:
    error = from_exception(wrapped_by(link))
    assert (error.type, error.message) == ("cuda_oom", "CUDA out of memory")
    assert with_memory(error, None).memory is not None


def test_an_error_after_an_oom_that_the_script_survived_is_its_own() -> None:
    def survived() -> None:
        try:
            raise torch.OutOfMemoryError(CUDA_OOM)
        except RuntimeError:
            raise ValueError("while trying a smaller batch")  # noqa: B904

    assert from_exception(raised(survived)).type == "user_error"


def test_a_group_is_named_by_what_is_in_it() -> None:
    error = failed(ExceptionGroup("unhandled errors in a TaskGroup", [ValueError("no column x"), KeyError("y")]))
    assert error.message == "ValueError: no column x"
    assert "ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions)" in (error.traceback or "")


@pytest.mark.parametrize(
    ("error", "whom"),
    [
        (RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. "), "a DataLoader worker"),
        (RuntimeError("DataLoader worker (pid(s) 4711, 12) exited unexpectedly"), "a DataLoader worker"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "a process of the script"),
    ],
)
def test_a_helper_that_vanished_is_host_oom_only_if_the_kernel_killed_one(
    error: BaseException, whom: str, tmp_path: Path
) -> None:
    told = failed(error)
    assert told.type == "user_error"
    (tmp_path / "vmstat").write_text("oom_kill 0\n")
    kills = OomKills(tmp_path, tmp_path, tmp_path / "none")
    assert with_kills(told, kills) == told
    (tmp_path / "vmstat").write_text("oom_kill 1\n")
    changed = with_kills(told, kills)
    assert (changed.type, changed.retryable, changed.signal) == ("host_oom", True, "SIGKILL")
    assert changed.message == f"the host ran out of memory: the kernel killed {whom}"
    crashed = failed(RuntimeError("DataLoader worker (pid 4711) is killed by signal: Segmentation fault. "))
    assert with_kills(crashed, kills) == crashed
    assert with_kills(failed(ValueError("other")), kills).type == "user_error"


def _raise_in_rank(rank: int) -> None:
    raise torch.OutOfMemoryError(CUDA_OOM)


def _kill_rank(rank: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_in_a_spawned_process_is_told_by_its_own_words() -> None:
    spawn = torch.multiprocessing.spawn  # type: ignore[attr-defined]
    error = from_exception(raised(lambda: spawn(_raise_in_rank, nprocs=1)))  # type: ignore[no-untyped-call]
    assert (error.type, error.message) == ("cuda_oom", "CUDA out of memory")
    assert with_memory(error, None).memory is not None
    killed = from_exception(raised(lambda: spawn(_kill_rank, nprocs=1)))  # type: ignore[no-untyped-call]
    assert (killed.type, killed.signal) == ("user_error", "SIGKILL")


def _raise_here(_: int) -> None:
    raise ValueError("in the pool")


def test_an_error_in_a_pool_keeps_the_frames_of_the_process_that_raised_it() -> None:
    def use() -> list[None]:
        with concurrent.futures.ProcessPoolExecutor(1) as pool:
            return list(pool.map(_raise_here, [1]))

    error = from_exception(raised(use))
    assert error.message == "ValueError: in the pool"
    assert "in _raise_here" in (error.traceback or "")


def test_long_traceback_keeps_the_users_frames_and_the_last_one() -> None:
    def deeper(depth: int) -> float:
        return float("x") if depth == 0 else deeper(depth - 1)

    error = from_exception(raised(lambda: deeper(50)))
    assert error.traceback is not None
    assert 1 < error.traceback.count('  File "') <= LAST_FRAMES
    assert "could not convert string to float: 'x'" in error.traceback
    assert error.message == "ValueError: could not convert string to float: 'x'"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Unlinked(Exception):
    """Its links are a circle."""

    def __init__(self) -> None:
        self.__cause__ = self


def hostile() -> Iterator[BaseException]:
    yield Unprintable()
    yield Unlinked()
    yield ValueError("x" * 5_000_000)
    yield ValueError("\U0001f525" * 100_000)
    yield ValueError("\0\x01\ud800\udfff" * 10_000)
    yield ValueError("\n" * 100_000)
    yield ValueError(b"\xff\x00", object())
    yield ExceptionGroup("many", [ValueError(str(number)) for number in range(1000)])
    yield UnicodeDecodeError("utf-8", b"\xff" * 1000, 0, 1, "invalid start byte")
    yield RecursionError("maximum recursion depth exceeded")


@pytest.mark.parametrize("error", list(hostile()), ids=lambda error: type(error).__name__)
def test_no_exception_is_too_odd_to_be_told_in_one_packet(error: BaseException) -> None:
    told = from_exception(raised(throwing(error)))
    assert told.type == "user_error"
    assert "\n" not in told.message
    packet = json.dumps({"type": "failure", "rank": 0, "error": told.model_dump(mode="json")})
    assert len(packet) < 64 * 1024
    assert "\\u0000" not in packet
    assert JobError.model_validate_json(told.model_dump_json()) == told


@pytest.mark.parametrize(
    ("returncode", "kernel_killed", "kind", "message"),
    [
        (3, False, "user_error", "the script exited with code 3"),
        (-signal.SIGSEGV, False, "user_error", "the script was killed by SIGSEGV"),
        (-signal.SIGKILL, False, "user_error", "the script was killed by SIGKILL"),
        (-signal.SIGKILL, True, "host_oom", "the host ran out of memory: the kernel killed the script"),
        (-signal.SIGSEGV, True, "user_error", "the script was killed by SIGSEGV"),
        (-40, False, "user_error", "the script was killed by signal 40"),
    ],
)
def test_exit_without_a_word_is_typed_by_code_and_signal(
    returncode: int, kernel_killed: bool, kind: str, message: str
) -> None:
    error = from_exit(returncode, kernel_killed=kernel_killed, epoch=2)
    assert (error.type, error.message, error.epoch) == (kind, message, 2)
    assert (error.exit_code is None) == (returncode < 0)


def test_supervisors_side_needs_no_torch() -> None:
    code = "import sys, worker.failures, worker.supervisor, worker.gpus; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
