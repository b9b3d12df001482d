"""Failures as subscribers get them: a real script below a real supervisor, its error typed, its files kept."""

import pickle
from pathlib import Path

import pytest

from epochcast.events import Error, Log
from epochcast.jobs import JobError, TrainingJob
from shared.artifacts import ArtifactStore
from tests.worker.host import Host
from tests.worker.test_bundles import keep, run, submit


def of(job: TrainingJob) -> JobError:
    assert job.error is not None
    assert job.error_message == job.error.message
    return job.error


@pytest.mark.parametrize(
    ("files", "entrypoint", "kind", "message", "detail"),
    [
        (
            {"train.py": b"import model", "model.py": b"x = 1\nif x\n    y = 2\n"},
            "train.py",
            "user_error",
            "SyntaxError: expected ':' (model.py, line 2)",
            'model.py", line 2\n    if x\n        ^',
        ),
        ({"other.py": b""}, "train.py", "code_rejected", "the bundle has no train.py", "it has: other.py"),
        ({"src/train.py": b""}, "src", "code_rejected", "the bundle's src is a folder", "src/train.py"),
        (
            {"pkg/train.py": b"from .net import f", "pkg/net.py": b""},
            "pkg/train.py",
            "user_error",
            "ImportError: attempted relative import with no known parent package",
            "instead of `from .network import",
        ),
        ({"train.py": b"import yaml2"}, "train.py", "user_error", "ModuleNotFoundError: No mod", "requirements.txt"),
        ({"train.py": b"import os\nos._exit(7)"}, "train.py", "user_error", "the script exited with code 7", "its log"),
        (
            {"train.py": b"import os\nos.kill(os.getpid(), 9)"},
            "train.py",
            "user_error",
            "the script was killed by SIGKILL",
            "someone or something",
        ),
        ({"train.py": b"assert False"}, "train.py", "user_error", "AssertionError", ""),
        ({"train.py": b"raise KeyboardInterrupt"}, "train.py", "user_error", "KeyboardInterrupt", ""),
    ],
    ids=["syntax", "no-file", "folder", "relative", "module", "code", "signal", "assert", "interrupt"],
)  # fmt: skip
def test_a_mistake_is_named_with_what_to_do(
    host: Host, tmp_path: Path, files: dict[str, bytes], entrypoint: str, kind: str, message: str, detail: str
) -> None:
    job = run(host, keep(host, tmp_path / "code", files), entrypoint=entrypoint)
    error = of(job)
    assert error.type == kind
    assert error.message.startswith(message)
    assert detail in (error.detail or "")
    last = host.messages(job.job_id)[-1]
    assert isinstance(last, Error)
    assert (last.error, last.error_message) == (error, error.message)


def test_frames_are_named_from_the_submitted_folder(host: Host, tmp_path: Path) -> None:
    files = {"train.py": b"from lib import deep\ndeep.fail()", "lib/deep.py": b"def fail():\n    return 1 / 0\n"}
    error = of(run(host, keep(host, tmp_path / "code", files)))
    assert 'File "train.py", line 2' in (error.traceback or "")
    assert 'File "lib/deep.py", line 2, in fail' in (error.traceback or "")


def test_a_failed_thread_ends_nothing_and_stands_in_the_log(host: Host, tmp_path: Path) -> None:
    script = b"import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()\n"
    job = run(host, keep(host, tmp_path / "code", {"train.py": script}))
    assert job.status == "succeeded", "as by hand: Python goes on"
    lines = [message for message in host.messages(job.job_id) if isinstance(message, Log)]
    assert ("ERROR", "ZeroDivisionError: division by zero") in {(line.level, line.message) for line in lines}


OOM = b"""
import epochcast, torch
# What a CUDA build has and this machine's may lack.
torch._C._cuda_isHistoryEnabled = lambda: True
torch.cuda.memory._snapshot = lambda *a, **k: {"segments": [], "device_traces": [[{"action": "oom", "size": 7}]]}
run = epochcast.init()
for epoch in run.epochs():
    run.report(epoch=epoch, loss=0.5)
    if epoch == 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
"""


def test_the_snapshot_of_an_oom_is_an_artifact_of_its_attempt(host: Host, tmp_path: Path) -> None:
    job = run(host, keep(host, tmp_path / "code", {"train.py": OOM}), total_epochs=5)
    assert (of(job).type, of(job).epoch) == ("cuda_oom", 2)
    [kept] = [row for row in host.queries.artifacts(job.job_id) if row["kind"] == "oom_snapshot"]
    ArtifactStore(host.settings.artifacts_url).get(kept["key"], tmp_path / "fetched")
    content = pickle.loads((tmp_path / "fetched").read_bytes())
    assert content["device_traces"] == [[{"action": "oom", "size": 7}]]
    assert kept["attempt"] == 1
    assert any("is kept as an artifact of kind oom_snapshot" in line for line in host.logs(job.job_id))


FORGED = b"""
import json, os, socket, hashlib
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
folder = os.open(os.path.dirname(os.environ["EPOCHCAST_SOCKET"]), os.O_PATH)
connection.connect(f"/proc/self/fd/{folder}/attempt.sock")
out = os.path.join(os.path.dirname(os.environ["EPOCHCAST_SOCKET"]), "out")
os.symlink("/etc/passwd", os.path.join(out, "link"))
with open(os.path.join(out, "huge"), "wb") as file:
    file.truncate(2**40)
open(os.path.join(out, "fine"), "w").write("x")
def say(**packet):
    connection.send(json.dumps({"rank": 0, "bytes": 1, "sha256": "0" * 64, **packet}).encode())
say(type="oom_snapshot", file="fine")                      # before any failure
say(type="failure", rank=1, error={"type": "cuda_oom", "message": "CUDA out of memory\\n\\u0000", "rank": 1})
say(type="oom_snapshot", file="fine", rank=0)              # another rank's
for name in ("../job.json", "/etc/passwd", "link", "huge", "", "nowhere"):
    say(type="oom_snapshot", file=name, rank=1)
raise SystemExit(1)
"""


def test_a_forged_snapshot_brings_no_file_of_the_host_into_the_store(host: Host, tmp_path: Path) -> None:
    job = run(host, keep(host, tmp_path / "code", {"train.py": FORGED}))
    assert of(job).type == "cuda_oom"
    assert {row["kind"] for row in host.queries.artifacts(job.job_id)} <= {"log"}
    assert len([line for line in host.logs(job.job_id) if "it was not kept" in line]) == 6


def test_a_stall_shows_what_every_process_does(host: Host, tmp_path: Path) -> None:
    script = b"import time\ndef stuck():\n    time.sleep(600)\nstuck()"
    content = keep(host, tmp_path / "code", {"train.py": script})
    job_id = submit(host, content, stall_timeout_s=25.0)  # the script is there by then
    host.wait_ended(host.attempt(job_id))
    error = of(host.store.get(job_id))
    assert (error.type, error.message) == ("stalled", "reported nothing for longer than stall_timeout_s = 25 s")
    assert "in stuck" in (error.traceback or "")
    lines = host.logs(job_id)
    assert any(line.startswith("rank 0, pid ") for line in lines)
    assert any("in stuck" in line for line in lines)


def test_time_and_divergence_name_the_epoch_and_the_last_loss(host: Host, tmp_path: Path) -> None:
    script = b"""
import epochcast, time, torch
run = epochcast.init()
for epoch in run.epochs():
    run.report(epoch=epoch, train_loss=float("inf") if epoch == 3 and run.params["inf"] else 0.25)
    if run.params["inf"]:
        run.checkpoint(step=torch.tensor(epoch))
    time.sleep(600 if epoch == 3 and not run.params["inf"] else 0)
"""
    content = keep(host, tmp_path / "code", {"train.py": script})
    job_id = submit(
        host, content, total_epochs=9, fail_on_non_finite=True, hyperparameters={"inf": True}, max_runtime_s=60.0
    )
    host.wait_ended(host.attempt(job_id))
    diverged = of(host.store.get(job_id))
    assert (diverged.type, diverged.epoch) == ("diverged", 3)
    assert diverged.detail == "after epoch 2 of 9, loss 0.25"
    # It went on until it was killed; nothing of that counts, and no checkpoint of it is there to resume from.
    assert host.store.get(job_id).current_epoch == 3
    kept = [row["epoch"] for row in host.queries.artifacts(job_id) if row["kind"] == "checkpoint"]
    assert max(kept) == 2
    job_id = submit(host, content, total_epochs=9, hyperparameters={"inf": False}, max_runtime_s=20.0)
    host.wait_ended(host.attempt(job_id), timeout_s=120)
    late = of(host.store.get(job_id))
    assert (late.type, late.epoch) == ("timeout", 3)
    assert late.detail == "after epoch 3 of 9, loss 0.25"


def test_a_stall_of_several_ranks_tells_each_by_its_rank(host: Host, tmp_path: Path) -> None:
    script = b"""
import os, time
def rank_zero():
    time.sleep(600)
def the_other():
    time.sleep(600)
rank_zero() if os.environ["RANK"] == "0" else the_other()
"""
    content = keep(host, tmp_path / "code", {"train.py": script})
    job_id = submit(host, content, stall_timeout_s=30.0, resources={"procs_per_node": 2})
    host.wait_ended(host.attempt(job_id), timeout_s=120)
    assert "in rank_zero" in (of(host.store.get(job_id)).traceback or "")
    told: dict[str, list[str]] = {}
    for line in host.logs(job_id):
        if line.startswith("rank "):
            told[line.partition(",")[0]] = []
        elif told:
            told[next(reversed(told))].append(line)
    assert any("in rank_zero" in line for line in told["rank 0"])
    assert any("in the_other" in line for line in told["rank 1"])


def test_a_rank_that_has_failed_and_does_not_end_holds_up_the_others_for_a_moment(host: Host, tmp_path: Path) -> None:
    script = b"""
import os, threading, time
if os.environ["RANK"] == "1":
    threading.Thread(target=time.sleep, args=(600,)).start()
    raise ValueError("no such class")
time.sleep(600)
"""
    content = keep(host, tmp_path / "code", {"train.py": script})
    job_id = submit(host, content, resources={"procs_per_node": 2})
    host.wait_ended(host.attempt(job_id), timeout_s=90)
    failed = of(host.store.get(job_id))
    assert (failed.type, failed.rank, failed.message) == ("user_error", 1, "ValueError: no such class")
