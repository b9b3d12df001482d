"""The trainer's process: a script runs as its own, whatever ends it arrives as a typed error with its code."""

import hashlib
import os
import pickle
import shutil
import signal
import textwrap
from pathlib import Path
from typing import Any

import pytest

from epochcast.jobs import JobError
from tests.listening import CHECKOUT, Attempt, finished, listening
from tests.waiting import wait_until
from tests.worker.oom_messages import CUDA_OOM
from worker.failures import with_kills
from worker.oom_kills import OomKills


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one more recipe, `mine`, which tests write."""
    root = tmp_path / "checkout"
    shutil.copytree(CHECKOUT / "worker", root / "worker", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "epochcast").symlink_to(CHECKOUT / "epochcast")
    (root / "shared").symlink_to(CHECKOUT / "shared")
    return root


def train(checkout: Path, tmp_path: Path, script: str, **told: Any) -> tuple[int, str, Attempt]:
    (checkout / "worker/recipes/mine.py").write_text(script)
    with listening(tmp_path / "attempt", recipe="mine", **told) as attempt:
        code, output = attempt.train(checkout)
        attempt.settle()
    return code, output, attempt


def error_of(attempt: Attempt) -> dict[str, Any]:
    wait_until(lambda: attempt.said("failure"), "the failure")
    error: dict[str, Any] = attempt.said("failure")[0]["error"]
    return error


RUNNING = """
import epochcast
import torch
run = epochcast.init()
for epoch in run.epochs():
    for batch in run.batches(range(5)):
        if (epoch, run.step) == (2, 3):
            {fault}
    run.report(epoch=epoch, train_loss=1.0)
"""


def test_cuda_oom_arrives_with_its_place_after_the_reports_before_it(checkout: Path, tmp_path: Path) -> None:
    script = RUNNING.format(fault=f"raise torch.OutOfMemoryError({CUDA_OOM!r})")
    code, output, attempt = train(checkout, tmp_path, script, params={"batch_size": 128})
    error = error_of(attempt)
    assert code == 1
    assert (error["type"], error["message"]) == ("cuda_oom", "CUDA out of memory")
    assert (error["epoch"], error["step"], error["rank"]) == (2, 3, 0)
    assert error["memory"]["requested_gib"] == 20.0
    assert error["verdict"].endswith("batch_size <= 96")
    assert [packet["type"] for packet in attempt.packets] == ["epoch", "report", "epoch", "failure"]
    assert "torch.OutOfMemoryError: CUDA out of memory" in output


def test_users_mistake_is_shown_by_their_own_lines_only(checkout: Path, tmp_path: Path) -> None:
    code, _, attempt = train(checkout, tmp_path, RUNNING.format(fault='raise ValueError("no column named x")'))
    error = error_of(attempt)
    assert code == 1
    assert (error["type"], error["message"]) == ("user_error", "ValueError: no column named x")
    assert "mine.py" in error["traceback"]
    assert "runpy" not in error["traceback"]
    assert "trainer.py" not in error["traceback"]


def test_syntax_error_names_file_and_line(checkout: Path, tmp_path: Path) -> None:
    code, output, attempt = train(checkout, tmp_path, "x = 1\ndef broken(:\n")
    assert "def broken(:" in output
    assert "worker/trainer.py" not in output, "the log shows it as Python does"
    error = error_of(attempt)
    assert (code, error["type"]) == (1, "user_error")
    assert error["detail"].splitlines()[1:3] == ["    def broken(:", "               ^"]
    assert error["message"].startswith("SyntaxError: invalid syntax (mine.py, line 2)")
    assert "trainer.py" not in error["traceback"]


@pytest.mark.parametrize(
    ("script", "exit_code", "kind", "message"),
    [
        ("raise MemoryError", 1, "host_oom", "the host ran out of memory: MemoryError"),
        ("import torch; torch.empty(10**15)", 1, "host_oom", "the host ran out of memory: "),
        (
            "import nothing_of_that_name",
            1,
            "environment",
            "ModuleNotFoundError: No module named 'nothing_of_that_name'",
        ),
        ("raise KeyboardInterrupt", 1, "user_error", "KeyboardInterrupt"),
        ("raise SystemExit('no data in /data')", 1, "user_error", "no data in /data"),
        (
            "import shared, sys; sys.exit(shared.__file__)",
            1,
            "environment",
            "ModuleNotFoundError: No module named 'shared'",
        ),
    ],
)
def test_every_end_by_exception_is_a_typed_error(
    checkout: Path, tmp_path: Path, script: str, exit_code: int, kind: str, message: str
) -> None:
    code, _, attempt = train(checkout, tmp_path, script)
    error = error_of(attempt)
    assert (code, error["type"]) == (exit_code, kind)
    assert error["message"].startswith(message)


@pytest.mark.parametrize(
    ("script", "exit_code"),
    [
        ("", 0),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit(256)", 0),
        ("import sys; sys.exit(-1)", 255),
        ("import sys; sys.exit(2**70)", 255),
        ("import os; os.abort()", -signal.SIGABRT),
    ],
)
def test_exit_codes_are_the_scripts_own(checkout: Path, tmp_path: Path, script: str, exit_code: int) -> None:
    code, _, attempt = train(checkout, tmp_path, script)
    assert code == exit_code
    assert attempt.said("failure") == []


LOADER = """
import os, signal
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        if index == 3:
            {fault}
        return index

for batch in DataLoader(Rows(), num_workers=1):
    pass
"""


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (
            'raise ValueError("row 3 is no picture")',
            "user_error",
            "ValueError: row 3 is no picture (in DataLoader worker process 0)",
        ),
        ('raise MemoryError("no room")', "host_oom", "the host ran out of memory: no room"),
    ],
)
def test_an_error_in_a_data_loaders_process_is_told_by_its_own_words(
    checkout: Path, tmp_path: Path, fault: str, kind: str, message: str
) -> None:
    code, _, attempt = train(checkout, tmp_path, LOADER.format(fault=fault))
    error = error_of(attempt)
    assert (code, error["type"], error["message"]) == (1, kind, message)
    assert "in __getitem__" in error["traceback"]


def test_a_killed_data_loader_is_a_failure_that_the_supervisor_can_look_into(checkout: Path, tmp_path: Path) -> None:
    code, _, attempt = train(checkout, tmp_path, LOADER.format(fault="os.kill(os.getpid(), signal.SIGKILL)"))
    error = JobError.model_validate(error_of(attempt))
    assert (code, error.type) == (1, "user_error")
    (tmp_path / "vmstat").write_text("oom_kill 0\n")
    kills = OomKills(tmp_path, tmp_path, tmp_path / "none")
    assert with_kills(error, kills) == error
    (tmp_path / "vmstat").write_text("oom_kill 1\n")
    assert with_kills(error, kills).type == "host_oom"


def test_a_script_that_closed_its_output_is_told_all_the_same(checkout: Path, tmp_path: Path) -> None:
    script = """
import os, sys
class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no")
os.close(1)
os.close(2)
sys.stderr = None
raise Odd
"""
    code, _, attempt = train(checkout, tmp_path, script)
    assert code != 0
    assert error_of(attempt)["message"] == "Odd: (its message can't be read: __str__ raised RuntimeError)"


EMPTY = "import os\nos.environ.clear()\n"
INIT = "import epochcast\nrun = epochcast.init()\n"
LINK = "from epochcast.integrations.link import link\nlink().report(1, {'loss': 1.0})\n"
CLOSED = "import os\nos.closerange(3, 256)\n"
RAISE = "raise ValueError('mine')"


@pytest.mark.parametrize("before", [EMPTY, EMPTY + INIT, INIT + EMPTY, INIT + CLOSED, LINK + CLOSED])
def test_a_script_that_empties_its_environment_or_closes_its_socket_is_heard(
    checkout: Path, tmp_path: Path, before: str
) -> None:
    code, output, attempt = train(checkout, tmp_path, before + RAISE)
    assert code == 1, output
    assert error_of(attempt)["message"] == "ValueError: mine"


def test_a_script_that_empties_its_environment_stays_the_jobs_and_its_ranks(checkout: Path, tmp_path: Path) -> None:
    script = EMPTY + INIT + "run.report(epoch=1, loss=run.params['lr'])\nprint(len(run.sampler(10)))"
    (checkout / "worker/recipes/mine.py").write_text(script)
    with listening(tmp_path / "attempt", recipe="mine", params={"lr": 0.5}) as attempt:
        process = attempt.start("-m", "worker.trainer", checkout=checkout, RANK="1", WORLD_SIZE="2")
        code, output = finished(process)
        attempt.settle()
    assert (code, output) == (0, "5\n")
    [report] = attempt.said("report")
    assert (report["rank"], report["metrics"]) == (1, {"loss": 0.5})


SNAPSHOT = """
import epochcast, torch
# What a CUDA build has and this machine's may lack: recording is on, and this is what the allocator says.
torch._C._cuda_isHistoryEnabled = lambda: True
entry = {{"action": "alloc", "addr": 0, "size": 512, "frames": ["x" * 100]}}
torch.cuda.memory._snapshot = lambda *a, **k: {snapshot}
run = epochcast.init()
raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
"""


def test_an_oom_while_allocations_are_recorded_leaves_their_snapshot(checkout: Path, tmp_path: Path) -> None:
    script = SNAPSHOT.format(snapshot='{"segments": [], "device_traces": [[dict(entry) for _ in range(10)]]}')
    _, _, attempt = train(checkout, tmp_path, script)
    assert [packet["type"] for packet in attempt.packets] == ["failure", "oom_snapshot"]
    told = attempt.packets[1]
    content = (attempt.out / told["file"]).read_bytes()
    assert (told["bytes"], told["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert len(pickle.loads(content)["device_traces"][0]) == 10


def test_a_snapshot_that_fails_costs_nothing_but_itself(checkout: Path, tmp_path: Path) -> None:
    code, _, attempt = train(checkout, tmp_path, SNAPSHOT.format(snapshot="1 / 0"))
    assert code == 1
    assert error_of(attempt)["type"] == "cuda_oom"
    assert [packet["message"] for packet in attempt.said("log")] == [
        "no snapshot of the GPU's allocator could be kept: ZeroDivisionError: division by zero"
    ]
    assert list(attempt.out.iterdir()) == []


def test_script_finds_its_own_modules_and_threads_not_the_platforms(checkout: Path, tmp_path: Path) -> None:
    script = """
import sys, torch
print([name for name in sys.modules if name.partition(".")[0] in ("api", "shared", "worker")])
print(__name__, torch.get_num_threads(), sys.argv)
import epochcast.client
"""
    code, output, _ = train(checkout, tmp_path, script, threads=2)
    assert code == 0, output
    assert output.splitlines()[:2] == ["[]", f"__main__ 2 ['{checkout}/worker/recipes/mine.py']"]


@pytest.mark.parametrize(("world", "freed"), [(1, "freed"), (2, "")])
def test_a_rank_does_not_free_a_ddp_model_that_its_script_still_holds(
    checkout: Path, tmp_path: Path, world: int, freed: str
) -> None:
    """Its process group would end with it, and may wait for ever; a process alone frees all that a script holds."""
    script = """
    import os, sys, weakref
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    say = eval("lambda _: os.write(1, b'freed')", {"os": os})  # doesn't hold this module
    sys.kept = weakref.ref(model, say)
    dist.destroy_process_group()
    """
    path = tmp_path / "attempt/train.py"
    with listening(path.parent, script=str(path)) as attempt:
        path.write_text(textwrap.dedent(script))
        process = attempt.start("-m", "worker.trainer", checkout=checkout, WORLD_SIZE=str(world), RANK="0")
        code, output = finished(process)
    assert (code, output) == (0, freed)


def test_printed_lines_leave_the_process_at_once(checkout: Path, tmp_path: Path) -> None:
    (checkout / "worker/recipes/mine.py").write_text("import time\nprint('here')\ntime.sleep(60)")
    with listening(tmp_path / "attempt", recipe="mine") as attempt:
        process = attempt.start("-m", "worker.trainer", checkout=checkout)
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.kill()
        finished(process)


def test_trainer_ends_when_its_supervisor_is_gone(checkout: Path, tmp_path: Path) -> None:
    script = """
import epochcast, time
run = epochcast.init()
for epoch in run.epochs():
    run.report(epoch=epoch, train_loss=1.0)
    time.sleep(0.01)
"""
    (checkout / "worker/recipes/mine.py").write_text(script)
    with listening(tmp_path / "attempt", recipe="mine", total_epochs=100_000) as attempt:
        process = attempt.start("-m", "worker.trainer", checkout=checkout)
        wait_until(lambda: attempt.said("report"), "the first report", timeout_s=60)
        attempt.hang_up()
        code, output = finished(process)
    assert code == 1
    assert "the supervisor is gone" in output


def test_started_by_hand_it_says_what_it_needs() -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "worker.trainer"],
        cwd=CHECKOUT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "EPOCHCAST_SOCKET" in done.stderr
