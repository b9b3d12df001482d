"""What the tests on a GPU share: the first GPU as NVML sees it, and a worker host that places jobs on it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from shared.embedded import RedisUnavailable, find_binary
from tests.conftest import missing
from tests.waiting import wait_until
from tests.worker.host import Host
from worker.gpus import Gpu, list_gpus

NEARLY_FREE = 0.05
# What a driver keeps of an ended process's memory for a moment, and small helpers of a desktop.
SLACK_BYTES = 2**27


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    """The first GPU, with nobody on it; afterwards it must be as empty as before."""
    assert torch.version.cuda is not None, f"torch {torch.__version__} is no CUDA build"
    # By NVML only: a CUDA context of this process would stay, and count as somebody else's memory.
    found = list_gpus()
    assert found, "NVML finds no GPU here"
    first = found[0]
    assert first.used_bytes < NEARLY_FREE * first.total_bytes, f"{first.name} is in use by {first.processes}"
    yield first
    wait_free(first)


def wait_free(before: Gpu) -> None:
    wait_until(
        lambda: list_gpus()[before.index].used_bytes < before.used_bytes + SLACK_BYTES, "the memory", timeout_s=30
    )


@pytest.fixture
def gpu_host(request: pytest.FixtureRequest, gpu: Gpu) -> Iterator[Callable[..., Host]]:
    """Starts a worker host; arguments are its agent's. Needs a Redis binary."""
    try:
        find_binary()
    except RedisUnavailable as error:
        missing("redis", str(error))
    settings, folder = request.getfixturevalue("sqlite_settings"), Path(request.getfixturevalue("tmp_path"))
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    hosts: list[Host] = []

    def start(*arguments: str) -> Host:
        host = Host(settings, folder)
        hosts.append(host)
        host.start_agent("--first", *arguments)
        return host

    yield start
    for host in hosts:
        host.close()
