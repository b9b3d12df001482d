"""Out-of-memory messages are read to their numbers, and the verdict names what a person can change."""

from pathlib import Path

import pytest

from epochcast.jobs import GpuMemory
from tests.worker import oom_messages
from worker.gpu_memory import names_of
from worker.gpus import GpuProcess
from worker.out_of_memory import CudaOom, is_cuda_oom, library_of, read, verdict


def advice(text: str, batch_size: int | None = None, who: str | None = None) -> str:
    return verdict(read(text), batch_size, text=text, who=who) or ""


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (oom_messages.CUDA_OOM, (20.0, 1.2, 130.1, 137.9, 139.8, 0.39)),
        (oom_messages.FRAGMENTED, (2.0, 0.5, 50.0, 77.0, 79.0, 0.5)),
        (oom_messages.IN_CONTAINER, (0.0137, 0.0046, 21.92, 21.94, 22.3, 0.01)),
        (oom_messages.UNNAMED, (0.0195, 0.0, 7.51, 7.53, 8.0, None)),
        (oom_messages.FRACTION, (10.0, 45.0, 34.0, 34.49, 80.0, 0.0)),
        (oom_messages.ASYNC, (10.12, 0.0, 4.86, None, 24.0, None)),
        (oom_messages.DRIVER, (None,) * 6),
    ],
)
def test_each_form_of_the_message_gives_its_numbers(text: str, numbers: tuple[float | None, ...]) -> None:
    assert tuple(read(text).memory.model_dump().values()) == numbers


def test_the_failing_gpu_and_the_scripts_own_limit_are_read() -> None:
    assert (read(oom_messages.FRACTION).device, read(oom_messages.FRACTION).limit_gib) == (1, 40.0)
    assert (read(oom_messages.ASYNC).device, read(oom_messages.ASYNC).limit_gib) == (0, None)
    assert read(oom_messages.CUDA_OOM).others == (GpuProcess(4711, 400 * 2**20),)


OF_THE_HOST = ("ADVICE", "CPU", "SHARED_MEMORY")


@pytest.mark.parametrize("name", [name for name in vars(oom_messages) if name.isupper() and name not in OF_THE_HOST])
def test_every_way_to_say_that_gpu_memory_ran_out_is_known(name: str) -> None:
    assert is_cuda_oom(getattr(oom_messages, name))


def test_the_library_that_asked_is_named() -> None:
    assert [library_of(text) for text in (oom_messages.CUBLAS, oom_messages.CUDNN, oom_messages.NCCL)] == [
        "cuBLAS",
        "cuDNN",
        "NCCL",
    ]
    held = CudaOom(GpuMemory(total_gib=80.0, reserved_gib=79.2, allocated_gib=70.0, others_gib=0.0))
    said = verdict(held, 64, "micro_batch_size", text=oom_messages.NCCL)
    assert said == "NCCL found no memory beside what torch holds (79.2 of 80.0 GiB): try micro_batch_size <= 32"


def test_verdict_gives_a_batch_size_that_could_fit() -> None:
    assert advice(oom_messages.CUDA_OOM, 128) == "batch too large by about 1.1x: try batch_size <= 96"
    assert "even with batch_size 1: try a smaller model" in advice(oom_messages.CUDA_OOM, 1)
    assert advice(oom_messages.CUDA_OOM) == "too large for this GPU by about 1.1x"


def test_verdict_tells_fragmentation_from_a_large_batch_and_says_which_setting_helps() -> None:
    said = advice(oom_messages.FRAGMENTED, 64)
    assert said.startswith("memory is fragmented: 27.0 GiB are reserved but unused")
    assert "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in said


def test_verdict_names_others_and_whether_the_job_would_fit_without_them() -> None:
    memory = read(oom_messages.FRAGMENTED).memory
    crowded = CudaOom(memory.model_copy(update={"allocated_gib": 20.0, "reserved_gib": 20.0, "others_gib": 58.0}))
    assert verdict(crowded, 64, who="python (pid 7) 58.0 GiB") == (
        "this would fit if the GPU were free; 58.0 GiB are held by other processes (python (pid 7) 58.0 GiB)"
    )
    assert "held by other" not in advice(oom_messages.IN_CONTAINER), "the process itself, by the host's pid"


def test_verdict_knows_a_limit_that_the_script_set_itself() -> None:
    assert advice(oom_messages.FRACTION, 16) == (
        "batch too large by about 1.1x: try batch_size <= 12 of the 40.0 GiB that the script allows itself"
    )


def test_pinned_memory_is_the_hosts() -> None:
    text = f"in pin memory thread for device 0: {oom_messages.DRIVER}"
    assert "page-locked memory of the host" in advice(text, 64)


def test_other_processes_are_named_as_far_as_they_can_be_seen(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/comm").write_text("python3\n")
    processes = (GpuProcess(8, None), GpuProcess(7, 3 * 2**30))
    assert names_of(processes, tmp_path) == "python3 (pid 7) 3.0 GiB, pid 8"
    assert names_of((), tmp_path) is None
