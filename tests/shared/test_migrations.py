"""The migrations make exactly the schema that shared/tables.py declares, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from shared import database
from shared.database import MIGRATIONS, Database
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


def test_each_migration_lets_the_version_before_it_write_on(empty_database_url: str) -> None:
    """While a fleet is updated both versions run: nothing that the older one knows may go, and what is new has a value
    where the older one gives none."""
    script = ScriptDirectory(str(MIGRATIONS))
    revisions = [revision.revision for revision in reversed(list(script.walk_revisions()))]
    migrate(empty_database_url, revisions[0])
    before = columns(empty_database_url)
    for revision in revisions[1:]:
        migrate(empty_database_url, revision)
        after = columns(empty_database_url)
        for table, known in before.items():
            assert known.keys() <= after[table].keys(), f"{revision} takes {table} something away"
            for name in after[table].keys() - known.keys():
                column = after[table][name]
                assert column["nullable"] or column["default"] is not None, f"{revision}: {table}.{name}"
            for name in known:
                assert str(after[table][name]["type"]) == str(known[name]["type"]), f"{revision}: {table}.{name}"
                assert known[name]["nullable"] <= after[table][name]["nullable"], f"{revision}: {table}.{name}"
        before = after


def migrate(url: str, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    record = Database(url)
    with record.engine.connect().execution_options(epochcast_writes=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    record.close()


def columns(url: str) -> dict[str, dict[str, Any]]:
    """By table and name."""
    engine = sa.create_engine(url)
    inspector = sa.inspect(engine)
    found = {
        table: {str(one["name"]): one for one in inspector.get_columns(table)} for table in inspector.get_table_names()
    }
    engine.dispose()
    return found


def test_upgrading_twice_changes_nothing(empty_database_url: str) -> None:
    database.upgrade(empty_database_url)
    database.upgrade(empty_database_url)
    assert differences(empty_database_url) == []


def test_processes_that_upgrade_at_once_all_succeed(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for outcome in [pool.submit(database.upgrade, empty_database_url) for _ in range(4)]:
            outcome.result(timeout=60)
    assert differences(empty_database_url) == []
