"""Which errors of PostgreSQL are outages, and that the next call finds its way back."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from shared.database import Database, DatabaseUnavailable
from shared.tables import hosts
from tests.postgres import PostgresServer
from tests.shared.records import add_host, host_state

pytestmark = pytest.mark.postgres


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    opened = Database(postgres_url)
    add_host(opened, host_state())
    yield opened
    opened.close()


def drain(database: Database) -> None:
    with database.write() as connection:
        connection.execute(sa.update(hosts).values(draining=True))


def test_a_server_that_has_become_read_only_is_left_for_the_new_primary(database: Database) -> None:
    with database.read() as connection:
        connection.exec_driver_sql("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        connection.exec_driver_sql("COMMIT")  # or the setting ends with this transaction
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        drain(database)
    drain(database)


def test_a_connection_that_the_administrator_ends_is_an_outage(
    database: Database, postgres_server: PostgresServer
) -> None:
    def write() -> None:
        with database.write() as connection:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            with postgres_server.connect() as administrator:
                administrator.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(DatabaseUnavailable):
        write()
    drain(database)


@pytest.mark.parametrize("code", ["XX000", "25P03", "57P02", "57P03"])
def test_the_servers_own_faults_are_outages(database: Database, code: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="simulated"), database.write() as connection:
        connection.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION 'simulated' USING ERRCODE = '{code}'; END $$")
    drain(database)


def test_our_own_mistakes_are_none(database: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(sa.insert(hosts).values(name="host-1"))

    def go_on_after_a_mistake() -> None:
        with database.write() as connection:
            with pytest.raises(sa.exc.ProgrammingError):
                connection.exec_driver_sql("SELECT no_such_column")
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(sa.exc.InternalError, match="current transaction is aborted"):
        go_on_after_a_mistake()
