"""Fixtures for tests of the sockets: a gateway without tokens in a thread, and a job that the test itself trains."""

from collections.abc import Iterator

import pytest

from api import fan_out
from api.fan_out import DirectFan, Fan
from shared.database import Database
from shared.settings import Settings
from tests.api.serving import ThreadGateway
from tests.api.training import Training
from tests.conftest import missing


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


@pytest.fixture(params=["by C", "by transports"])
def kind_of_fan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Fan]:
    """What messages go out by, with and without the library that `make setup` builds."""
    if request.param == "by transports":
        monkeypatch.setattr(fan_out, "compiled", lambda: None)
        return Fan
    if fan_out.compiled() is None:
        missing("cc", "there is no C compiler here, or make setup was not run")
    return DirectFan
