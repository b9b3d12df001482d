"""Clusters that serve all tests of this folder, made whole again around each."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.embedded import RedisServer, falkordb_binary
from shared.settings import Settings
from tests.conftest import make_settings, outlives_tests
from tests.faults.cluster import LEASES, Cluster
from tests.postgres import PostgresServer
from tests.worker.conftest import make_host as make_host

Made = Callable[[str], Cluster]


@pytest.fixture(scope="package")
def make_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Makes a cluster on the database at a URL, with a Redis of its own that keeps nothing."""
    made: list[Cluster] = []

    def make(database_url: str) -> Cluster:
        folder = tmp_path_factory.mktemp("cluster")
        server = RedisServer(folder / "redis", binary=falkordb_binary())
        server.start()
        base = make_settings(database_url, server.url, folder)
        settings = Settings.model_validate({**base.model_dump(exclude_unset=True), **LEASES})
        cluster = Cluster(settings, server, folder)
        outlives_tests(server, cluster.gateway, *cluster.workers.values())
        made.append(cluster)
        cluster.start()
        cluster.reference()
        return cluster

    yield make
    for cluster in made:
        cluster.close()
        cluster.redis_server.stop()


@pytest.fixture(scope="package")
def sqlite_cluster(make_cluster: Made, migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    path = tmp_path_factory.mktemp("record") / "epochcast.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    return make_cluster(f"sqlite:///{path}")


@pytest.fixture(scope="package")
def postgres_cluster(make_cluster: Made, postgres_server: PostgresServer) -> Cluster:
    # A name of its own: where files of other packages come between, the package's fixtures are made anew.
    return make_cluster(postgres_server.create_database(f"faults_{secrets.token_hex(4)}", "epochcast"))


@pytest.fixture
def on_sqlite(sqlite_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster on SQLite, whole."""
    sqlite_cluster.heal()
    yield sqlite_cluster
    sqlite_cluster.heal()


@pytest.fixture
def on_postgres(postgres_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster on PostgreSQL, whole."""
    postgres_cluster.heal()
    yield postgres_cluster
    postgres_cluster.heal()
