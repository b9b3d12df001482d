"""Exceptions and exits become typed errors that name the cause, with a CUDA out-of-memory error's numbers."""

import errno
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from epochcast.jobs import JobError
from tests.listening import CHECKOUT
from worker.failures import LAST_FRAMES, from_exception, from_exit
from worker.out_of_memory import count_oom_kills, read_memory, verdict

# As torch's CUDA caching allocator words it.
CUDA_OOM = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which 1.20 GiB is "
    "free. Process 4711 has 400.00 MiB memory in use. Including non-PyTorch memory, this process has 138.20 GiB memory "
    "in use. Of the allocated memory 130.10 GiB is allocated by PyTorch, with 12.00 MiB allocated in private pools "
    "(e.g., CUDA Graphs), and 7.80 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is "
    "large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for "
    "Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)
FRAGMENTED = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.00 GiB of which 512.00 MiB is "
    "free. Including non-PyTorch memory, this process has 78.00 GiB memory in use. Of the allocated memory 50.00 GiB "
    "is allocated by PyTorch, and 27.00 GiB is reserved by PyTorch but unallocated."
)


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


def failed(error: BaseException, is_recipe: bool = False, batch_size: int | None = None) -> JobError:
    return from_exception(raised(throwing(error)), is_recipe=is_recipe, batch_size=batch_size)


def test_cuda_oom_has_the_documents_message_the_numbers_and_a_verdict() -> None:
    error = from_exception(
        raised(throwing(torch.OutOfMemoryError(CUDA_OOM))), epoch=3, step=17, batch_size=128, gpu="NVIDIA H200"
    )
    assert (error.type, error.message, error.retryable) == ("cuda_oom", "CUDA out of memory", False)
    assert error.memory is not None
    assert error.memory.model_dump() == {
        "requested_gib": 20.0,
        "free_gib": 1.2,
        "allocated_gib": 130.1,
        "reserved_gib": 137.9,
        "total_gib": 139.8,
        "others_gib": 0.39,
    }
    assert error.verdict == "batch too large by about 1.1x: try batch_size <= 96"
    assert error.detail is not None
    assert error.detail.startswith("CUDA out of memory. Tried to allocate 20.00 GiB")
    assert (error.gpu, error.epoch, error.step, error.rank) == ("NVIDIA H200", 3, 17, 0)


def test_verdict_tells_fragmentation_and_other_processes_from_a_large_batch() -> None:
    memory = read_memory(FRAGMENTED)
    assert memory is not None
    assert memory.others_gib == 0.5
    assert "memory is fragmented: 27.0 GiB are reserved" in (verdict(memory, 64) or "")
    crowded = memory.model_copy(update={"allocated_gib": 20.0, "reserved_gib": 20.0, "others_gib": 58.0})
    assert "58.0 GiB are held by other processes" in (verdict(crowded, None) or "")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "cuda_oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "cuda_oom"),
        (torch.OutOfMemoryError("anything"), "cuda_oom"),
        (MemoryError(), "host_oom"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host_oom"),
        (OSError(errno.ENOSPC, "No space left on device"), "environment"),
        (RuntimeError("Found no NVIDIA driver on your system."), "environment"),
        (RuntimeError("CUDA error: device-side assert triggered"), "user_error"),
        (RuntimeError("Function 'MulBackward0' returned nan values in its 0th output."), "diverged"),
        (FloatingPointError("overflow encountered in multiply"), "diverged"),
        (ValueError("the text says CUDA out of memory"), "user_error"),
        (KeyError("lr"), "user_error"),
        (KeyboardInterrupt(), "user_error"),
    ],
)
def test_each_kind_of_exception_has_its_type(error: BaseException, kind: str) -> None:
    assert failed(error).type == kind


def test_memory_that_torch_can_not_get_on_the_cpu_is_host_oom() -> None:
    error = from_exception(raised(lambda: torch.empty(10**15)))
    assert (error.type, error.retryable) == ("host_oom", True)
    assert "out of memory" in error.message


def test_missing_module_is_the_hosts_fault_only_in_a_recipe() -> None:
    assert failed(ModuleNotFoundError("No module named 'sklearn'"), is_recipe=True).type == "environment"
    assert failed(ModuleNotFoundError("No module named 'nmupy'")).type == "user_error"


def test_error_raised_from_an_oom_is_the_oom_but_one_raised_after_it_is_not() -> None:
    def wrapped() -> None:
        try:
            raise torch.OutOfMemoryError(CUDA_OOM)
        except RuntimeError as error:
            raise ValueError("step failed") from error

    def survived() -> None:
        try:
            raise torch.OutOfMemoryError(CUDA_OOM)
        except RuntimeError:
            raise ValueError("while trying a smaller batch") from None

    assert from_exception(raised(wrapped)).type == "cuda_oom"
    assert from_exception(raised(survived)).type == "user_error"


def test_long_traceback_keeps_the_users_frames_and_the_last_one() -> None:
    def deeper(depth: int) -> float:
        return float("x") if depth == 0 else deeper(depth - 1)

    error = from_exception(raised(lambda: deeper(50)))
    assert error.traceback is not None
    assert 1 < error.traceback.count('  File "') <= LAST_FRAMES
    assert "could not convert string to float: 'x'" in error.traceback
    assert error.message == "ValueError: could not convert string to float: 'x'"


def test_endless_message_is_cut() -> None:
    error = failed(ValueError("x" * 1_000_000))
    assert len(error.model_dump_json()) < 20_000


@pytest.mark.parametrize(
    ("returncode", "oom_kills", "kind", "message"),
    [
        (3, 0, "user_error", "the script exited with code 3"),
        (-signal.SIGSEGV, 0, "user_error", "the script was killed by SIGSEGV"),
        (-signal.SIGKILL, 0, "user_error", "the script was killed by SIGKILL"),
        (-signal.SIGKILL, 1, "host_oom", "the host ran out of memory: the kernel killed the script"),
        (-signal.SIGSEGV, 1, "user_error", "the script was killed by SIGSEGV"),
        (-40, 0, "user_error", "the script was killed by signal 40"),
    ],
)
def test_exit_without_a_word_is_typed_by_code_and_signal(
    returncode: int, oom_kills: int, kind: str, message: str
) -> None:
    error = from_exit(returncode, oom_kills=oom_kills, epoch=2)
    assert (error.type, error.message, error.epoch) == (kind, message, 2)
    assert (error.exit_code is None) == (returncode < 0)


def test_kernels_counters_are_read_where_there_are_any(tmp_path: Path) -> None:
    assert count_oom_kills(tmp_path, tmp_path) == 0
    (tmp_path / "vmstat").write_text("nr_free_pages 7\noom_kill 3\n")
    (tmp_path / "memory.events").write_text("oom 9\noom_kill 5\noom_group_kill 8\n")
    assert count_oom_kills(tmp_path, tmp_path) == 5
    assert count_oom_kills() >= 0


def test_supervisors_side_needs_no_torch() -> None:
    code = "import sys, worker.failures, worker.gpus; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_verdict_names_the_parameter_that_the_job_has() -> None:
    error = from_exception(
        raised(throwing(torch.OutOfMemoryError(CUDA_OOM))), batch_size=128, batch_named="micro_batch_size"
    )
    assert error.verdict == "batch too large by about 1.1x: try micro_batch_size <= 96"
