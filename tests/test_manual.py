"""Every command and snippet of the manual is run: here against a platform of its own, or where a table says."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import epochcast
from tests import manual
from tests.conftest import missing, outlives_tests
from tests.manual import ELSEWHERE_BLOCKS, ELSEWHERE_COMMANDS, PRELUDES, Block
from tests.markdown import CHECKOUT
from tests.platform import Platform
from tests.waiting import wait_until

BLOCKS = list(manual.blocks())
HERE = [block for block in BLOCKS if block.key not in ELSEWHERE_BLOCKS]
SHELL = [block for block in HERE if block.language in ("bash", "console")]
PYTHON = [block for block in HERE if block.language == "python"]
JAVASCRIPT = [block for block in HERE if block.language == "javascript"]
NODE = Path(sys.executable).parent / "node"

# A block may submit several jobs, and its test sees each of them begin.
pytestmark = pytest.mark.timeout(600)


def test_the_tables_name_what_the_manual_has_and_tests_that_there_are() -> None:
    keys = {block.key for block in BLOCKS}
    said = {command for block in SHELL for command in manual.commands(block)}
    assert ELSEWHERE_BLOCKS.keys() - keys == set()
    assert PRELUDES.keys() - keys == set()
    assert ELSEWHERE_COMMANDS.keys() - said == set()
    for reason in (*ELSEWHERE_BLOCKS.values(), *ELSEWHERE_COMMANDS.values()):
        for path in re.findall(r"tests/\S+\.py", reason):
            assert (CHECKOUT / path).is_file(), f"{path} is said to run a block, and isn't there"


@pytest.fixture(scope="module")
def manual_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with one job, number 1, that has trained and left model 1."""
    with Platform(tmp_path_factory.mktemp("manual-platform")) as running:
        outlives_tests(running)
        with epochcast.Client(running.url, running.token) as client:
            quick = {"model": "mlp", "width": 1}
            job = client.submit(recipe="image-classifier", total_epochs=2, hyperparameters=quick)
            assert (job.job_id, job.result().model_id) == (1, 1)
        yield running


@pytest.fixture
def reader(manual_platform: Platform, tmp_path: Path) -> Iterator[Path]:
    """The folder of someone who follows the manual; afterwards every job of theirs has begun well, and is stopped."""
    folder = tmp_path / "reader"
    (folder / "src").mkdir(parents=True)
    shutil.copy(CHECKOUT / "examples" / "own-script" / "network.py", folder)
    shutil.copy(CHECKOUT / "examples" / "own-script" / "train.py", folder)
    (folder / "examples").symlink_to(CHECKOUT / "examples")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".epochcast").symlink_to(manual_platform.data_dir)
    _make_data(tmp_path / "data")
    with epochcast.Client(manual_platform.url, manual_platform.token) as client:
        before = {job.job_id for job in client.jobs(limit=200)}
        yield folder
        for job in client.jobs(limit=200):
            if job.job_id in before:
                continue
            wait_until(partial(_has_begun, client, job.job_id), f"the first epoch of {job.name}", timeout_s=90)
            if not job.refreshed().status.is_terminal:
                job.stop()


def _has_begun(client: epochcast.Client, job_id: int) -> bool:
    job = client.job(job_id)
    assert job.status != "failed", f"{job.name}: {job.error_message}\n{job.error}"
    return job.current_epoch > 0 or job.status.is_terminal


def _make_data(folder: Path) -> None:
    """What the manual's `/data` holds."""
    (folder / "cells").mkdir(parents=True)
    random = np.random.default_rng(0)
    np.savez(folder / "cells" / "all.npz", images=random.random((64, 8, 8)), labels=np.arange(64) % 2)
    rows = [f"{number / 7},{number % 3},{'yes' if number % 2 else 'no'}" for number in range(60)]
    (folder / "churn.csv").write_text("\n".join(["age,plan,left", *rows]))
    (folder / "novels").mkdir()
    for name in ("one", "two", "three"):
        (folder / "novels" / f"{name}.txt").write_text(f"It was the {name} of times. " * 500)


def environment(platform: Platform, folder: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(CHECKOUT),
        "HOME": str(folder),
        "EPOCHCAST_URL": platform.url,
        "EPOCHCAST_TOKEN": platform.token or "",
        "TOKEN": platform.token or "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def pointed_at(code: str, platform: Platform, data: Path) -> str:
    """The block with another server, other numbers and another place of the data, and fewer epochs."""
    code = manual.changed(code).replace("http://localhost:8000", platform.url)
    code = code.replace("ws://localhost:8000", platform.url.replace("http", "ws"))
    code = re.sub(r"\b4[23]\b", "1", code).replace("artifacts/7/", "artifacts/1/")
    return code.replace("/data/", f"{data}/")


def run(command: list[str | Path], platform: Platform, folder: Path) -> str:
    """What the command prints; it must end well."""
    ran = subprocess.run(
        command, cwd=folder, env=environment(platform, folder), capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    assert "Traceback" not in ran.stderr
    return ran.stdout


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_commands_do_what_they_say(block: Block, request: pytest.FixtureRequest) -> None:
    lines = [command for command in manual.commands(block) if command not in ELSEWHERE_COMMANDS]
    if not lines:
        return
    if any("curl" in line for line in lines) and shutil.which("curl") is None:
        missing("curl", "the manual's curl commands need curl")
    folder: Path = request.getfixturevalue("reader")
    platform: Platform = request.getfixturevalue("manual_platform")
    code = pointed_at("\n".join(lines), platform, folder.parent / "data")
    code = code.replace("curl -s", "curl -sS --fail-with-body")
    run(["bash", "-euo", "pipefail", "-c", code], platform, folder)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_snippets_run(block: Block, manual_platform: Platform, reader: Path) -> None:
    code = PRELUDES.get(block.key, "") + pointed_at(block.code, manual_platform, reader.parent / "data")
    run([sys.executable, "-c", code], manual_platform, reader)


@pytest.mark.parametrize("block", JAVASCRIPT, ids=str)
def test_javascript_snippets_get_the_jobs_messages(block: Block, manual_platform: Platform, tmp_path: Path) -> None:
    """Node speaks WebSocket as a browser does."""
    script = tmp_path / "snippet.mjs"
    code = pointed_at(block.code, manual_platform, tmp_path)
    script.write_text(f"const token = '{manual_platform.token}';\n{code}")
    assert "complete" in run([NODE, script], manual_platform, tmp_path)
