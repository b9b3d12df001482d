"""A worker host whose processes a test may freeze and kill."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.settings import Settings
from tests.faults.checker import Checker
from tests.worker.host import Host


@pytest.fixture
def make_host(
    request: pytest.FixtureRequest, sqlite_settings: Settings, tmp_path: Path
) -> Iterator[Callable[..., Host]]:
    """Makes a host with its agent running, started with the arguments; keyword arguments change its settings."""
    hosts: list[Host] = []

    def make(*arguments: str, **changes: object) -> Host:
        settings = Settings.model_validate({**sqlite_settings.model_dump(exclude_unset=True), **changes})
        settings.work_dir.mkdir(parents=True, exist_ok=True)
        host = Host(settings, tmp_path)
        hosts.append(host)
        host.start_agent("--first", *arguments)
        return host

    yield make
    for host in hosts:
        host.close()
    if request.node.get_closest_marker("checked") is not None:
        # Whatever the test itself asserts: no overlap, no stale write, no hole. Its jobs may be left on their way.
        Checker(sqlite_settings, tmp_path / "steps").assert_whole(ended=False)


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    return make_host()


HASTY = {"lease_s": 11.0, "licence_s": 6.0, "kill_s": 1.0, "heartbeat_s": 0.5, "stop_grace_s": 2.0}


@pytest.fixture
def hasty_host(make_host: Callable[..., Host]) -> Host:
    """A host with a lease of seconds, for tests that let it run out."""
    return make_host(**HASTY)
