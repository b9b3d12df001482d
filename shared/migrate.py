"""Brings the database of EPOCHCAST_DATABASE_URL to this version's schema: once, before gateways and workers start."""

import sys

from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from shared import database
from shared import settings as settings_module
from shared.database import DatabaseUnavailable
from shared.settings import SettingsError


def main() -> int:
    try:
        url = settings_module.from_environment().database_url.get_secret_value()
        database.upgrade(url)
    except (SettingsError, DatabaseUnavailable, SQLAlchemyError, CommandError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        print(f"epochcast migrate: {reason}; look at EPOCHCAST_DATABASE_URL", file=sys.stderr)
        return 1
    print("the database is at the newest migration")
    return 0


if __name__ == "__main__":
    sys.exit(main())
