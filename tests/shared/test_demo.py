"""`make demo`: a real job trains to its end in front of the user, and nothing is left but the model."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.platform import CHECKOUT
from tests.shared.test_local import all_gone
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Started in an empty folder, with settings in the environment that must not count."""
    (tmp_path / "tmp").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "TMPDIR": str(tmp_path / "tmp"),
        "EPOCHCAST_URL": "http://127.0.0.1:1",
        "EPOCHCAST_BROKER_URL": "redis://127.0.0.1:1/0",
        "EPOCHCAST_LEASE_S": "1",
    }
    with (tmp_path / "output.log").open("wb") as log:
        command = [sys.executable, "-m", "shared.demo"]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    yield process
    process.kill()
    process.wait()


def test_demo_trains_shows_and_keeps_only_the_model(demo: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    code = demo.wait(280)
    output = (tmp_path / "output.log").read_text()
    assert code == 0, output
    assert "epoch 20/20" in output
    assert "job 1 succeeded after 20 epochs: " in output
    model = tmp_path / "epochcast-demo" / "digits.safetensors"
    assert f"{model} ({model.stat().st_size} bytes" in output
    assert list((tmp_path / "tmp").iterdir()) == []


def test_interrupted_demo_stops_everything(demo: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    output = tmp_path / "output.log"

    def first_epoch() -> bool:
        assert demo.poll() is None, output.read_text()
        return "epoch 1/20" in output.read_text()

    wait_until(first_epoch, "the first epoch", timeout_s=120)
    started = psutil.Process(demo.pid).children(recursive=True)
    # As a terminal does: to everything in its foreground group.
    for process in (psutil.Process(demo.pid), *psutil.Process(demo.pid).children()):
        if os.getpgid(process.pid) == os.getpgid(demo.pid):
            process.send_signal(signal.SIGINT)
    assert demo.wait(120) == 130, output.read_text()
    assert "Traceback" not in output.read_text()
    assert all_gone(started)
    assert list((tmp_path / "tmp").iterdir()) == []
