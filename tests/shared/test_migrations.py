"""The migrations make exactly the schema that shared/tables.py declares, on both databases."""

from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from shared import database
from shared.database import Database
from shared.tables import metadata


def differences(url: str) -> list[object]:
    record = Database(url)
    try:
        with record.read() as connection:
            context = MigrationContext.configure(connection, opts={"compare_server_default": True})
            return list(compare_metadata(context, metadata))
    finally:
        record.close()


def check_constraints(url: str) -> set[tuple[str, str | None]]:
    engine = sa.create_engine(url)
    inspector = sa.inspect(engine)
    found = {(table, check["name"]) for table in metadata.tables for check in inspector.get_check_constraints(table)}
    engine.dispose()
    return found


def test_migrated_schema_is_the_declared_one(empty_database_url: str) -> None:
    database.upgrade(empty_database_url)
    assert differences(empty_database_url) == []


def test_migrated_schema_has_every_declared_check(empty_database_url: str) -> None:
    # Alembic's comparison leaves CHECK constraints out, and the leases rely on them.
    database.upgrade(empty_database_url)
    declared = {
        (table.name, f"ck_{table.name}_{check.name}" if not str(check.name).startswith("ck_") else str(check.name))
        for table in metadata.tables.values()
        for check in table.constraints
        if isinstance(check, sa.CheckConstraint)
    }
    assert check_constraints(empty_database_url) == declared


def test_upgrading_twice_changes_nothing(empty_database_url: str) -> None:
    database.upgrade(empty_database_url)
    database.upgrade(empty_database_url)
    assert differences(empty_database_url) == []


def test_processes_that_upgrade_at_once_all_succeed(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for outcome in [pool.submit(database.upgrade, empty_database_url) for _ in range(4)]:
            outcome.result(timeout=60)
    assert differences(empty_database_url) == []
