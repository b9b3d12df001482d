"""Of several ranks that failed the one is named whose failure the others follow from."""

import pytest

from epochcast.jobs import JobError
from worker.first_failure import cause_of, is_consequence

GLOO = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:554] Connection closed by peer [127.0.0.1]"


def failed(rank: int, message: str, **fields: object) -> JobError:
    return JobError.model_validate({"type": "user_error", "rank": rank, "message": message, **fields})


@pytest.mark.parametrize(
    "message",
    [
        GLOO,
        "DistBackendError: NCCL error in: ProcessGroupNCCL.cpp, remote process exited or there was a network error",
        "DistNetworkError: The client socket has timed out after 60000ms while trying to connect to (10.0.0.1, 20001).",
        "RuntimeError: [../gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 1800000ms for recv operation",
    ],
)
def test_the_loss_of_another_rank_is_a_consequence(message: str) -> None:
    assert is_consequence(failed(0, message))


@pytest.mark.parametrize(
    "message",
    [
        "ConnectionRefusedError: [Errno 111] Connection refused",
        "BrokenPipeError: [Errno 32] Broken pipe",
        "TimeoutError: timed out",
        "ValueError: bad shard",
        "the script was killed by SIGKILL",
    ],
)
def test_a_scripts_own_trouble_is_a_cause(message: str) -> None:
    assert not is_consequence(failed(0, message))


def test_the_cause_is_named_although_the_consequence_was_heard_first() -> None:
    lost, cause, later = failed(0, GLOO), failed(1, "ValueError: bad shard"), failed(2, "ValueError: another")
    assert cause_of([lost, cause, later]) is cause
    assert cause_of([lost]) is lost
    assert cause_of([]) is None


def test_out_of_memory_is_never_a_consequence() -> None:
    assert not is_consequence(failed(0, "CUDA out of memory", type="cuda_oom", detail="NCCL timed out"))
