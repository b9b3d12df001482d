"""A job of two FSDP ranks through real supervisors: parts to the store, a damaged one passed over, old ones deleted."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from epochcast.jobs import Status
from shared.artifacts import ArtifactStore
from shared.manifest import is_manifest, read_manifest
from tests.waiting import wait_until
from tests.worker.host import Host
from tests.worker.pair import Pair

RANK = """
import os, time
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
import epochcast
from worker.leaving import leave

dist.init_process_group("gloo")
run = epochcast.init()
model = torch.nn.Linear(8, 4)
fully_shard(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
run.state(model=model, optimizer=optimizer)
run.resume()
for epoch in run.epochs():
    for _ in run.batches(range(4)):
        optimizer.zero_grad()
        model(torch.rand(4, 8)).square().mean().backward()
        optimizer.step()
        time.sleep(PAUSE_S)
    run.report(epoch=epoch, train_loss=1 / epoch)
    run.checkpoint()
if run.finished:
    run.save_model(model)
dist.destroy_process_group()
run.close()
leave(0, os.getcwd())  # as the trainer ends: with torch 2.13 a thread of gloo may abort Python's own way out
"""


def script(pause_s: float) -> str:
    return RANK.replace("PAUSE_S", str(pause_s))


def committed(host: Host, job_id: int) -> list[dict[str, object]]:
    return [row for row in host.queries.artifacts(job_id) if row["kind"] == "checkpoint"]


def test_sharded_job_is_stopped_and_resumes_past_a_damaged_part(make_host: Callable[..., Host]) -> None:
    host = make_host()
    folder = Path(urlsplit(host.settings.artifacts_url).path)
    store = ArtifactStore(host.settings.artifacts_url)
    job_id = host.submit(total_epochs=200, procs_per_node=2)
    supervisor = host.attempt(job_id, script(0.05))
    wait_until(lambda: len(committed(host, job_id)) == 2, f"two checkpoints\n{host.output}", timeout_s=60)
    host.store.request_stop(job_id)
    host.wait_ended(supervisor)
    job = host.store.get(job_id)
    assert job.status == Status.STOPPED
    older, newest = committed(host, job_id)[-2:]
    assert is_manifest(str(newest["key"]))
    manifest = read_manifest(b"".join(store.stream(str(newest["key"]))), str(newest["key"]))
    assert manifest.world == 2
    assert {file.name for file in manifest.files} == {"__0_0.distcp", "__1_0.distcp", ".metadata", "state.pt"}
    assert newest["bytes"] == sum(file.bytes for file in manifest.files)

    damaged = folder / manifest.files[-1].key
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    host.store.restart(job_id)
    host.wait_placed(job_id)
    supervisor = host.attempt(job_id, script(0.05))
    host.wait_logged(job_id, f"resumed after epoch {older['epoch']}")
    assert any(f"checkpoint of epoch {newest['epoch']} is damaged" in line for line in host.logs(job_id))
    before = int(str(newest["id"]))
    wait_until(
        lambda: len([row for row in committed(host, job_id) if int(row["id"]) > before]) >= 2,  # type: ignore[call-overload]
        f"two newer checkpoints\n{host.output}",
        timeout_s=60,
    )
    host.store.request_stop(job_id)
    host.wait_ended(supervisor)

    kept = committed(host, job_id)
    named = {str(row["key"]) for row in kept}
    for key in list(named):
        named |= {file.key for file in read_manifest(b"".join(store.stream(key)), key).files}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {key for key in there if "/checkpoints/" in key} == named


def test_sharded_job_succeeds_with_one_whole_model(make_host: Callable[..., Host]) -> None:
    host = make_host()
    job = host.run(script(0), total_epochs=3, procs_per_node=2)
    assert job.status == Status.SUCCEEDED, host.output
    assert job.model_id is not None
    assert [message for message in host.logs(job.job_id) if "resumed" in message or "WARNING" in message] == []


def test_parts_of_one_checkpoint_come_from_both_hosts(make_host: Callable[..., Host], tmp_path: Path) -> None:
    pair = Pair(make_host, tmp_path)
    job_id = pair.submit(total_epochs=200)
    supervisors = pair.start(job_id, script(0.05))
    wait_until(lambda: committed(pair.first, job_id), f"a checkpoint\n{pair.output}", timeout_s=90)
    pair.store.request_stop(job_id)
    pair.wait_ended(supervisors)
    assert pair.store.get(job_id).status == Status.STOPPED
    newest = committed(pair.first, job_id)[-1]
    store = ArtifactStore(pair.first.settings.artifacts_url)
    manifest = read_manifest(b"".join(store.stream(str(newest["key"]))), str(newest["key"]))
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata"} <= {file.name for file in manifest.files}
    pair.store.restart(job_id)
    supervisors = pair.start(job_id, script(0.05))
    pair.wait_logged(job_id, f"resumed after epoch {newest['epoch']}")
    before = int(str(newest["id"]))
    wait_until(
        lambda: any(int(str(row["id"])) > before for row in committed(pair.first, job_id)),
        f"a checkpoint of the second attempt\n{pair.output}",
        timeout_s=90,
    )
    pair.store.request_stop(job_id)
    pair.wait_ended(supervisors)
