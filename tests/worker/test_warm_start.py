"""Warm start: forked trainers are as new ones, only sooner; and whatever befalls the fork server, jobs go on."""

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from epochcast.jobs import Status, TrainingJobSpec
from tests.shared.records import spec
from tests.waiting import wait_until
from tests.worker.host import CHECKOUT, Host
from tests.worker.test_bundles import keep, submit
from worker import fork_server
from worker.process_tree import descendants, start_time
from worker.warm_start import ForkServerKeeper, starts_warm
from worker.workspace import TRAINER

pytestmark = pytest.mark.checked

HOW = "print('cold' if b'worker.trainer' in open('/proc/self/cmdline', 'rb').read() else 'warm')\n"
ENDLESS = HOW + "import time\nwhile True: time.sleep(0.1)\n"


def run(host: Host, folder: Path, script: str, **fields: object) -> list[str]:
    """The log of one job whose script this is."""
    content = keep(host, folder, {"train.py": textwrap.dedent(script).encode()})
    job_id = submit(host, content, **fields)
    host.wait_ended(host.attempt(job_id))
    job = host.store.get(job_id)
    assert job.status is Status.SUCCEEDED, (job.error, host.output)
    return host.logs(job_id)


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    """A host whose fork server is ready."""
    host = make_host("--warm")
    fork_server_of(host)
    return host


def fork_server_of(host: Host) -> int:
    """The pid of the host's fork server, once it serves."""
    assert host.agent is not None
    agent = host.agent.pid

    def found() -> int:
        return named(fork_server.READY, [child.pid for child in psutil.Process(agent).children()])

    return wait_until(found, "the fork server", timeout_s=90)


def spare_of(server: int) -> int:
    """The pid of the launcher that a fork server holds ready."""
    return wait_until(lambda: named(fork_server.SPARE, descendants(server)), "the spare", timeout_s=20)


def named(name: str, pids: list[int]) -> int:
    """The pid of the one with this name; 0: there is none."""
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                return pid
    return 0


LOOK = """
import json, multiprocessing, os, random, signal, sys, tempfile
import numpy, torch
import epochcast
print(json.dumps({
    "random": [random.random(), numpy.random.rand(), torch.rand(1).item()],
    "environment": open("/proc/self/environ").read().split("\\0"),
    "TMPDIR": tempfile.gettempdir(),
    "cwd": os.getcwd(),
    "descriptors": sorted(os.listdir("/proc/self/fd"), key=int),
    "platform": [name for name in sys.modules if name.split(".")[0] in ("worker", "shared", "api")],
    "argv": sys.argv, "path": sys.path, "flags": list(sys.flags), "name": open("/proc/self/comm").read().strip(),
    "signals": {str(number): str(signal.getsignal(number)) for number in sorted(signal.valid_signals())},
    "key": multiprocessing.current_process().authkey.hex(), "handled": str(sys.exc_info()),
    "session": os.getsid(0) == os.getpid(), "threads": torch.get_num_threads(), "hash": hash("epochcast"),
}))
"""


def test_a_forked_trainer_finds_what_a_new_one_finds(host: Host, tmp_path: Path) -> None:
    warm = [run(host, tmp_path / name, HOW + LOOK, args=["--lr", "1"]) for name in ("first", "second")]
    cold = run(host, tmp_path / "third", HOW + LOOK, args=["--lr", "1"], env={"OMP_PROC_BIND": "false"})
    assert [lines[0] for lines in (*warm, cold)] == ["warm", "warm", "cold"]
    first, second, third = (json.loads(lines[1]) for lines in (*warm, cold))
    for number in range(3):
        assert first["random"][number] != second["random"][number], "each process draws for itself"
    for name in ("descriptors", "platform", "flags", "name", "session", "threads", "hash", "signals", "handled"):
        assert first[name] == third[name], name
    assert first["key"] != second["key"]
    assert first["argv"][1:] == third["argv"][1:] == ["--lr", "1"]
    assert first["path"][0] == str(Path(first["argv"][0]).parent)
    assert first["path"][1:] == third["path"][1:]
    assert first["cwd"] != second["cwd"]
    assert Path(first["TMPDIR"]).parent == Path(first["cwd"]).parent
    known = [line for line in first["environment"] if line.startswith("EPOCHCAST_")]
    assert not known, "a fork server has neither a job's names nor the platform's"


def test_a_recipe_ends_with_the_same_weights_warm_and_cold(host: Host) -> None:
    fields = {"hyperparameters": {"width": 4}, "total_epochs": 2}
    kept = []
    # What the test names as the trainer's command is no template's: the same program, executed.
    for script in (None, "import runpy; runpy.run_module('worker.trainer', run_name='__main__', alter_sys=True)"):
        job = host.run(script, **fields)
        assert job.status is Status.SUCCEEDED, (job.error, host.output)
        assert job.model_id is not None
        kept.append(host.queries.model(job.model_id, None)["sha256"])
    assert kept[0] == kept[1]


def test_the_first_step_of_a_forked_trainer_imports_nothing_of_torch_any_more(host: Host, tmp_path: Path) -> None:
    script = """
    import sys
    before = set(sys.modules)
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 2))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for x, in DataLoader(TensorDataset(torch.randn(8, 1, 8, 8)), batch_size=4, shuffle=True):
        torch.nn.functional.cross_entropy(model(x), torch.zeros(4, dtype=torch.long)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    torch.save(model.state_dict(), "weights.pt")
    torch.load("weights.pt", weights_only=True)
    print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] in ("torch", "sympy", "numpy")))
    """
    assert run(host, tmp_path / "code", script) == ["[]"]


def test_ranks_start_warm(host: Host, tmp_path: Path) -> None:
    script = HOW + "import os, torch.distributed as d; d.init_process_group('gloo'); d.barrier(); print(d.get_rank())"
    lines = run(host, tmp_path / "code", script, resources={"procs_per_node": 2})
    assert sorted(lines) == ["0", "[rank 1] 1", "[rank 1] warm", "warm"]


def test_a_killed_fork_server_costs_no_running_job_and_is_replaced(host: Host, tmp_path: Path) -> None:
    content = keep(host, tmp_path / "code", {"train.py": ENDLESS.encode()})
    job_id = submit(host, content)
    attempt = host.attempt(job_id)
    host.wait_logged(job_id, "warm")
    server = fork_server_of(host)
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: start_time(server) is None, "the server's end")
    assert all(start_time(pid) is not None for pid in host.tree(job_id))
    host.store.request_stop(job_id)
    host.wait_ended(attempt)
    assert host.store.get(job_id).status is Status.STOPPED
    assert run(host, tmp_path / "next", HOW)[0] in ("warm", "cold")
    assert fork_server_of(host) != server


def test_the_spare_becomes_the_next_launcher_and_is_replaced(host: Host, tmp_path: Path) -> None:
    server = fork_server_of(host)
    spare = spare_of(server)
    content = keep(host, tmp_path / "code", {"train.py": ENDLESS.encode()})
    job_id = submit(host, content)
    supervisor = host.attempt(job_id)
    host.wait_logged(job_id, "warm")
    assert host.launcher(job_id) == spare
    assert spare_of(server) != spare
    host.store.request_stop(job_id)
    host.wait_ended(supervisor)
    assert host.store.get(job_id).status is Status.STOPPED


@pytest.mark.parametrize("name", [fork_server.SPARE, fork_server.SPARE_TRAINER])
def test_a_dead_spare_costs_nothing(host: Host, tmp_path: Path, name: str) -> None:
    server = fork_server_of(host)
    dying = wait_until(lambda: named(name, descendants(server)), "the spare", timeout_s=20)
    os.kill(dying, signal.SIGKILL)
    assert run(host, tmp_path / "code", HOW) == ["warm"]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_a_spare_trainer_is_none_for_the_job_to_come(
    host: Host, tmp_path: Path, sign: signal.Signals
) -> None:
    server = fork_server_of(host)
    waiting = wait_until(lambda: named(fork_server.SPARE_TRAINER, descendants(server)), "the spare", timeout_s=20)
    os.kill(waiting, sign)
    assert run(host, tmp_path / "code", HOW) == ["warm"]


def test_a_frozen_spare_costs_a_moment(host: Host, tmp_path: Path) -> None:
    os.kill(spare_of(fork_server_of(host)), signal.SIGSTOP)
    assert run(host, tmp_path / "code", HOW) == ["warm"]


def test_a_module_beside_the_script_is_the_one_it_imports(host: Host, tmp_path: Path) -> None:
    files = {"train.py": (HOW + "import joblib, random; print(joblib.MINE, random.MINE)").encode()}
    files |= {"joblib.py": b"MINE = 1", "random.py": b"MINE = 2"}
    for env in ({}, {"OMP_PROC_BIND": "false"}):
        job_id = submit(host, keep(host, tmp_path / str(len(env)), files), env=env)
        host.wait_ended(host.attempt(job_id))
        assert host.logs(job_id) == ["cold" if env else "warm", "1 2"]


def test_the_end_of_a_forked_child_is_not_the_scripts(host: Host, tmp_path: Path) -> None:
    script = HOW + "import os\nif os.fork() == 0:\n    raise ValueError('child')\nprint(os.wait()[1] >> 8)"
    lines = run(host, tmp_path / "code", script)
    assert {"warm", "1", "ValueError: child"} <= set(lines)


def test_no_spare_outlives_its_fork_server(host: Host) -> None:
    server = fork_server_of(host)
    spare = spare_of(server)
    born = start_time(spare)
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: start_time(spare) != born, "the end of the spare", timeout_s=20)
    wait_until(lambda: fork_server_of(host) != server, "the next fork server", timeout_s=90)


def test_a_frozen_fork_server_delays_a_job_and_no_more(host: Host, tmp_path: Path) -> None:
    assert run(host, tmp_path / "first", HOW) == ["warm"]
    server = fork_server_of(host)
    os.kill(server, signal.SIGSTOP)
    assert run(host, tmp_path / "second", HOW) == ["cold"]
    assert start_time(server) is None, "it must not wake up and fork a second trainer for that job"


@pytest.mark.parametrize("victim", ["supervisor", "launcher"])
def test_no_forked_process_outlives_its_supervisor_or_its_launcher(host: Host, tmp_path: Path, victim: str) -> None:
    script = ENDLESS.replace("import time", "import subprocess, time; subprocess.Popen(['setsid', 'sleep', '600'])")
    job_id = submit(host, keep(host, tmp_path / "code", {"train.py": script.encode()}))
    attempt = host.attempt(job_id)
    host.wait_logged(job_id, "warm")
    wait_until(lambda: len(host.tree(job_id)) >= 3, "launcher, trainer and sleep")
    tree = host.tree(job_id)
    os.kill(attempt.pid if victim == "supervisor" else tree[0], signal.SIGKILL)
    wait_until(lambda: all(start_time(pid) is None for pid in tree), "the end of every process", timeout_s=20)
    assert start_time(fork_server_of(host)) is not None
    host.wait_ended(attempt)


def test_what_must_not_be_forked_starts_cold(tmp_path: Path) -> None:
    def warm(**fields: object) -> bool:
        return starts_warm(TRAINER, TrainingJobSpec.model_validate(own | fields), tmp_path)

    own = {"bundle": f"sha256:{'0' * 64}", "entrypoint": "train.py"}
    assert warm()
    assert warm(env={"DEBUG": "1", "HF_HOME": "/data", "NCCL_DEBUG": "INFO"})
    for name in ("MKL_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_LOGS", "CUDA_LAUNCH_BLOCKING"):
        assert not warm(env={name: "1"}), name
    assert not starts_warm((sys.executable, "other.py"), spec(), tmp_path)
    (tmp_path / "requirements.txt").write_text("six\n")
    assert not warm()


def test_a_process_with_a_second_thread_refuses_to_fork() -> None:
    held = threading.Event()
    thread = threading.Thread(target=held.wait)
    thread.start()
    try:
        with pytest.raises(fork_server.NotForkSafe, match="threads"):
            fork_server.check_fork_safe()
    finally:
        held.set()
        thread.join()


# What a GPU's driver and torch would show; no fork server on this machine can have touched one.
TOUCHED_CUDA = {
    "CUDA is initialised": "torch.cuda.is_initialized = lambda: True",
    "a GPU's device is open": "os.readlink = lambda path: '/dev/nvidia0'",
}


@pytest.mark.parametrize("found", TOUCHED_CUDA)
def test_a_process_that_has_touched_a_gpu_refuses_to_fork(found: str) -> None:
    lines = ["import os, torch", "from worker.fork_server import check_fork_safe", TOUCHED_CUDA[found]]
    code = "\n".join([*lines, "check_fork_safe()"])
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert f"NotForkSafe: {found}" in done.stderr


def test_preloading_leaves_a_process_that_may_be_forked() -> None:
    code = "from worker import fork_server as f; f.preload(); f.check_fork_safe(); import torch; torch.ones(9).sum()"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-P", "-c", code], env=environment, check=True, timeout=120)


# An object that needs its module when it goes.
WRITER = """
import json, os
class Writer:
    def __init__(self):
        self.rows = [1, 2]
    def __del__(self):
        os.write(1, f"rows {json.dumps(self.rows)}\\n".encode())
writer = Writer()
"""
# A thread that runs on until the process has ended.
PREFETCH = """
import json, threading, time
def prefetch():
    while True:
        time.sleep(0.001)
        json.dumps([1])
threading.Thread(target=prefetch, daemon=True).start()
"""


def test_what_a_script_leaves_is_finished_when_it_ends(host: Host, tmp_path: Path) -> None:
    script = """
    import atexit, multiprocessing, os, sys, threading, time
    def late():
        time.sleep(0.3)
        print("thread", flush=True)
    threading.Thread(target=late).start()
    multiprocessing.get_context("fork").Process(target=lambda: (time.sleep(0.3), print("process", flush=True))).start()
    atexit.register(print, "atexit")
    kept = open(sys.argv[1], "w")
    kept.write("written")
    sys.kept = [kept]
    sys.kept.append(sys.kept)
    import archive, prefetch, torch, writer
    from concurrent.futures import ThreadPoolExecutor
    class Net(torch.nn.Linear):
        pass
    def save(name):
        time.sleep(0.3)
        torch.save(Net(2, 2), name)
    threading.Thread(target=save, args=("thread.pt",)).start()
    ThreadPoolExecutor().submit(save, "pool.pt")
    atexit.register(lambda: (save("atexit.pt"), print(sorted(name for name in os.listdir() if name.endswith(".pt")))))
    class Gone:
        def __del__(self):
            os.write(1, b"deleted\\n")
    gone = Gone()
    """
    for number, env in enumerate(({}, {"OMP_PROC_BIND": "false"})):
        path = tmp_path / f"kept-{number}"
        packed = tmp_path / f"packed-{number}.gz"
        files = {
            "train.py": (HOW + textwrap.dedent(script)).encode(),
            "archive.py": b"import gzip, sys; FILE = gzip.open(sys.argv[2], 'wt'); FILE.write('whole')",
            "writer.py": WRITER.encode(),
            "prefetch.py": PREFETCH.encode(),
        }
        job_id = submit(host, keep(host, tmp_path / f"code-{number}", files), args=[str(path), str(packed)], env=env)
        host.wait_ended(host.attempt(job_id))
        lines = host.logs(job_id)
        assert lines[0] == ("cold" if env else "warm")
        saved = "['atexit.pt', 'pool.pt', 'thread.pt']"
        assert set(lines[1:]) == {"deleted", "thread", "process", "atexit", "rows [1, 2]", saved}
        assert path.read_text() == "written"
        assert gzip.decompress(packed.read_bytes()) == b"whole"
        assert host.store.get(job_id).status is Status.SUCCEEDED


def test_an_error_of_a_forked_script_is_told_as_that_of_a_new_one(host: Host, tmp_path: Path) -> None:
    script = HOW + "def deep():\n    raise ValueError('no')\ndeep()\n"
    content = keep(host, tmp_path / "code", {"train.py": script.encode()})
    told = []
    for env in ({}, {"OMP_PROC_BIND": "false"}):
        job_id = submit(host, content, env=env)
        host.wait_ended(host.attempt(job_id))
        error = host.store.get(job_id).error
        assert error is not None
        lines = [re.sub(r"jobs/\d+/\d+", "jobs", line) for line in host.logs(job_id)]
        told.append((re.sub(r"jobs/\d+/\d+", "jobs", error.traceback or ""), lines[1:]))
        assert lines[0] == ("cold" if env else "warm")
        assert lines[1] == "Traceback (most recent call last):"
        assert "train.py" in lines[2], "the platform's own frames are no part of it"
    assert told[0] == told[1]


def test_a_server_that_fails_again_and_again_is_given_pauses(tmp_path: Path) -> None:
    keeper = ForkServerKeeper({**os.environ, "PYTHONPATH": str(tmp_path)})
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__init__.py").write_text("raise SystemExit(1)")
    starts: list[int | None] = []

    def tried() -> bool:
        keeper.watch()
        if keeper.pid is not None and keeper.pid not in starts:
            starts.append(keeper.pid)
        return keeper.is_doubtful and keeper._pause_s > 2

    keeper.ensure()
    try:
        wait_until(tried, "two failures", timeout_s=30)
        assert len(starts) <= 3
        assert not keeper.is_ready
    finally:
        keeper.end()
