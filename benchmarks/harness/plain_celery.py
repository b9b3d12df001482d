"""What people build first: a Celery task that runs a script in a subprocess. Entry point of the worker that `serve`
starts.

Nothing of epochcast: no record, no lease, no log, no stop, no resume.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celery import Celery

from shared.processes import dies_with_parent, end

BROKER = "PLAIN_CELERY_BROKER"
CHECKOUT = Path(__file__).parents[2]
READY_S = 60.0

app = Celery("plain", broker=os.environ.get(BROKER))
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)


@app.task  # type: ignore[untyped-decorator]
def train(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, script, *arguments], check=True)


@contextmanager
def serve(broker_url: str, environment: dict[str, str], folder: Path) -> Iterator[Celery]:
    """A worker with two processes; what is yielded sends it tasks. `environment`: the worker's, and so the script's.

    What the worker says goes into a file in `folder`.
    """
    said = folder / "plain-celery.log"
    with said.open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", __name__, "worker", "--concurrency=2", "--loglevel=WARNING"],
            cwd=CHECKOUT,
            env={**environment, BROKER: broker_url},
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=dies_with_parent(),
        )
    app.conf.broker_url = broker_url
    try:
        deadline = time.monotonic() + READY_S
        while not app.control.ping(timeout=0.5):
            if worker.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the plain Celery worker did not start; it said:\n{said.read_text()}")
        yield app
    finally:
        end(worker, grace_s=10)
        app.close()
