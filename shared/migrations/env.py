"""What Alembic runs around the migrations: on the connection it was handed, else on EPOCHCAST_DATABASE_URL."""

import sqlalchemy as sa
from alembic import context

from shared import settings
from shared.database import Database
from shared.tables import metadata


def migrate(connection: sa.Connection) -> None:
    # Batch mode: SQLite can change a table only by copying it.
    context.configure(
        connection=connection, target_metadata=metadata, render_as_batch=True, compare_server_default=True
    )
    with context.begin_transaction():
        context.run_migrations()


handed = context.config.attributes.get("connection")
if handed is not None:
    migrate(handed)
else:
    with Database(settings.from_environment().database_url.get_secret_value()).write() as own:
        migrate(own)
