"""What most tests of the record begin with: each of both databases, empty, and the store on it."""

from collections.abc import Iterator

import pytest

from shared.database import Database
from shared.store import Store


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url, connections=12)
    yield opened
    opened.close()


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)
