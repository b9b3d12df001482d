"""Fixtures for tests of the sockets: a gateway without tokens in a thread, and a job that the test itself trains."""

from collections.abc import Iterator

import pytest

from shared.database import Database
from shared.settings import Settings
from tests.api.serving import ThreadGateway
from tests.api.training import Training


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def open_settings(sqlite_settings: Settings) -> Settings:
    """Without tokens."""
    return sqlite_settings.model_copy(update={"auth": "none"})


@pytest.fixture
def socket_gateway(open_settings: Settings) -> Iterator[ThreadGateway]:
    with ThreadGateway(open_settings) as gateway:
        yield gateway


@pytest.fixture
def database(sqlite_settings: Settings) -> Iterator[Database]:
    database = Database(sqlite_settings.database_url.get_secret_value())
    yield database
    database.close()


@pytest.fixture
def training(database: Database, sqlite_settings: Settings) -> Iterator[Training]:
    """A queued job."""
    training = Training(database, sqlite_settings.events_redis_url)
    yield training
    training.close()
