"""Fixtures for tests of the REST side: the whole gateway, with tokens."""

from collections.abc import Iterator

import httpx2
import pytest

from shared.settings import Settings
from tests.api.rest.served import Served


@pytest.fixture
def served(sqlite_settings: Settings) -> Iterator[Served]:
    """On SQLite."""
    with Served(sqlite_settings) as running:
        yield running


@pytest.fixture
def served_on_both(settings: Settings) -> Iterator[Served]:
    """Runs the test on SQLite and on PostgreSQL."""
    with Served(settings) as running:
        yield running


@pytest.fixture
def alice(served: Served) -> httpx2.Client:
    return served.client("alice")


@pytest.fixture
def bob(served: Served) -> httpx2.Client:
    return served.client("bob")
