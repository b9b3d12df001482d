"""Fixtures for tests of the training SDK."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import epochcast
from epochcast.training import Run, current_run
from tests.epochcast.training_run import Begin
from tests.listening import Attempt, listening


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Starts a run of this process under a listening supervisor; called again, the job's next attempt."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    opened: list[AbstractContextManager[Attempt]] = []

    def start(**told: Any) -> tuple[Run, Attempt]:
        if (earlier := current_run()) is not None:
            earlier.close()
        folder = tmp_path / f"attempt-{len(opened)}"
        opened.append(listening(folder, **told))
        attempt = opened[-1].__enter__()
        for name, value in attempt.environment.items():
            monkeypatch.setenv(name, value)
        return epochcast.init(), attempt

    yield start
    if (last := current_run()) is not None:
        last.close()
    for context in reversed(opened):
        context.__exit__(None, None, None)
    signal.signal(signal.SIGTERM, on_sigterm)
