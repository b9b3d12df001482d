"""A whole platform as its own process, for end-to-end tests."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Self

from shared.processes import dies_with_parent, end
from tests.waiting import wait_until

CHECKOUT = Path(__file__).parent.parent
READY_S = 90.0  # two cores that are busy with something else


class Platform:
    """`python -m shared.local` on any free port, with its data in `folder`."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.url = ""
        self.token: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._arguments = arguments
        self._environment = environment or {}

    @property
    def output(self) -> str:
        """Everything it has printed so far."""
        path = self.folder / "output.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def launch(self) -> "subprocess.Popen[bytes]":
        """Starts it without waiting until it is ready."""
        command = [sys.executable, "-m", "shared.local", "--port", "0", "--data-dir", str(self.data_dir)]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "output.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self._arguments],
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "XDG_STATE_HOME": str(self.folder / "state"), **self._environment},
                preexec_fn=dies_with_parent(),
            )
        return self.process

    def start(self) -> None:
        process = self.launch()
        state = self.data_dir / "local.json"

        def ready() -> bool:
            assert process.poll() is None, f"the platform ended at start:\n{self.output}"
            return state.exists()

        try:
            wait_until(ready, "the platform's local.json", timeout_s=READY_S)
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}\n{self.output}") from None
        content = json.loads(state.read_text())
        self.url, self.token = content["url"], content["token"]

    def stop(self) -> int:
        """Asks it to stop, as Ctrl-C does; its exit code."""
        assert self.process is not None
        return end(self.process, grace_s=60)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
