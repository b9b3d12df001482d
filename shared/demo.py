"""`make demo`: starts a platform of its own, trains a real job on real data, shows it live, and cleans up."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from shared.processes import dies_with_parent, end

CHECKOUT = Path(__file__).parent.parent
SUBMIT = ["submit", "--recipe", "image-classifier", "-p", "dataset=digits", "--epochs", "20", "--name", "digits"]
MODEL_FOLDER = Path("epochcast-demo")
READY_S = 180.0
STOP_S = 90.0


class DemoFailed(Exception):
    """Raised when the demo can't go on; the message says why."""


def main() -> int:
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, _leave)
    # The demo starts its own servers and reaches no other: no setting of this shell counts.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EPOCHCAST_")}
    folder = Path(tempfile.mkdtemp(prefix="epochcast-demo-"))
    try:
        with platform(folder, environment) as connection:
            return show_training({**environment, **connection})
    except DemoFailed as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything is stopped", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def platform(folder: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A running platform; yields what a client's environment needs to reach it."""
    print("starting Redis, gateway and worker …", flush=True)
    started = time.monotonic()
    # As many slots as cores gives each trainer one thread: with two, this small network took 15 times as long on two
    # busy cores (0.23 s against 4 s an epoch, 2026-11-23), because the threads wait for each other in busy loops.
    slots = str(os.cpu_count() or 1)
    command = [
        sys.executable,
        "-m",
        "shared.local",
        "--port",
        "0",
        "--data-dir",
        str(folder / "data"),
        "--slots",
        slots,
    ]
    (folder / "tmp").mkdir()
    # Its own temporary folder: torch leaves a cache there.
    own = {"XDG_STATE_HOME": str(folder / "state"), "TMPDIR": str(folder / "tmp")}
    with (folder / "platform.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env={**environment, **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C ends the watching first, then, in order, the platform
            preexec_fn=dies_with_parent(),
        )
    try:
        state = _state_when_ready(process, folder)
        print(f"ready at {state['url']} after {time.monotonic() - started:.1f} s\n", flush=True)
        yield {"EPOCHCAST_URL": state["url"], "EPOCHCAST_TOKEN": state["token"]}
    finally:
        print("\nstopping worker, gateway and Redis …", flush=True)
        end(process, STOP_S)
        print("everything is stopped", flush=True)


def _state_when_ready(process: "subprocess.Popen[bytes]", folder: Path) -> dict[str, str]:
    path = folder / "data" / "local.json"
    deadline = time.monotonic() + READY_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = (folder / "platform.log").read_text(errors="replace")[-3000:]
            raise DemoFailed(f"the platform did not start; its last lines:\n{tail}")
        time.sleep(0.05)
    state: dict[str, str] = json.loads(path.read_text())
    return state


def show_training(environment: dict[str, str]) -> int:
    """Submits the job and watches it as a user would, with the command line in this terminal. The exit code."""
    print(f"$ epochcast {' '.join(SUBMIT)} --watch", flush=True)
    code = subprocess.run(
        [sys.executable, "-m", "epochcast.cli", *SUBMIT, "--watch"],
        cwd=CHECKOUT,
        env=environment,
        preexec_fn=dies_with_parent(),
    ).returncode
    if code != 0:
        return code
    show_result(environment["EPOCHCAST_URL"], environment["EPOCHCAST_TOKEN"])
    return 0


def show_result(url: str, token: str) -> None:
    """Downloads the model and loads it, as whoever uses it later would. Raises DemoFailed."""
    from safetensors import safe_open

    from epochcast import Client

    with Client(url, token) as client:
        job = client.jobs(limit=1)[0]
        if job.model_id is None:
            raise DemoFailed(f"job {job.job_id} is {job.status} and has no model")
        MODEL_FOLDER.mkdir(exist_ok=True)
        (MODEL_FOLDER / ".gitignore").write_text("*\n")
        path = client.download_model(job.model_id, MODEL_FOLDER / "digits.safetensors")
        epochs = len(client.metrics(job.job_id)["epoch"])
    with safe_open(str(path), framework="numpy") as tensors:
        shapes = [tensors.get_tensor(name).size for name in tensors.keys()]  # noqa: SIM118  (not a dict)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in (job.final_metrics or {}).items() if value is not None)
    print(f"\njob {job.job_id} {job.status} after {epochs} epochs: {metrics}")
    print(f"model {job.model_id}: {path.resolve()} ({path.stat().st_size} bytes, {sum(shapes)} parameters, loads)")


def _leave(number: int, _frame: FrameType | None) -> None:
    # As an exception, so that the platform is stopped on the way out.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
