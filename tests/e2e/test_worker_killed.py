"""A worker killed with -9 in mid-job: its tree ends, the job resumes, and one subscriber sees it through."""

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import psutil
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from epochcast.events import EventId
from tests.e2e.test_document import submit
from tests.faults.service import names_of
from tests.platform import Platform
from tests.waiting import wait_until

EPOCHS = 250


def worker_of(platform: Platform) -> psutil.Process:
    """The worker's main process."""
    assert platform.process is not None
    children = psutil.Process(platform.process.pid).children()
    [worker] = [child for child in children if "worker" in child.cmdline()]
    return worker


def test_a_killed_worker_costs_nothing_but_time(tmp_path: Path) -> None:
    with Platform(tmp_path, "--no-auth") as platform:
        job_id = submit(platform, total_epochs=EPOCHS)
        messages, code = asyncio.run(follow_and_kill(platform, job_id))
    assert code == 1000
    assert messages[-1]["type"] == "complete"
    ids = [EventId.parse(message["id"]) for message in messages]
    assert ids == sorted(set(ids)), "in order, none twice"
    for before, after in pairwise(ids):
        assert after.generation > before.generation or after.seq == before.seq + 1, f"a hole before {after}"
    assert len({message["id"].split("-")[0] for message in messages}) >= 3, "claimed, requeued, claimed again"
    epochs = [m["current_epoch"] for m in messages if m["type"] == "progress" and m["status"] == "running"]
    assert max(epochs) == EPOCHS
    resumed = next(m["message"] for m in messages if m["type"] == "log" and m["message"].startswith("resumed"))
    assert int(resumed.rsplit(" ", 1)[1]) >= 1


async def follow_and_kill(platform: Platform, job_id: int) -> tuple[list[dict[str, Any]], int]:
    """Follows the job to its end; kills the worker once a checkpoint is committed."""
    messages: list[dict[str, Any]] = []
    killed = False
    url = f"{platform.url.replace('http', 'ws')}/api/v1/training-jobs/{job_id}/ws"
    async with connect(url) as socket:
        try:
            while True:
                messages.append(json.loads(await asyncio.wait_for(socket.recv(), 90)))
                if not killed and messages[-1]["current_epoch"] >= 5:
                    killed = True
                    await asyncio.to_thread(wait_for_checkpoint, platform, job_id)
                    await asyncio.to_thread(kill_and_see_the_tree_end, platform)
        except ConnectionClosed:
            return messages, socket.close_code or 0


def wait_for_checkpoint(platform: Platform, job_id: int) -> None:
    url = f"{platform.url}/api/v1/training-jobs/{job_id}/artifacts"
    wait_until(lambda: httpx2.get(url, timeout=30).json()["items"], "a committed checkpoint", timeout_s=60)


def kill_and_see_the_tree_end(platform: Platform) -> None:
    worker = worker_of(platform)
    tree = worker.children(recursive=True)
    assert "ec-trainer" in names_of([process.pid for process in tree]).values()
    worker.kill()
    wait_until(lambda: not [p for p in tree if is_running(p)], "the end of every process of the worker", timeout_s=20)


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
