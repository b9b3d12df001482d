"""Whether this host's worker is alive in the record: the health check of its container (exit code 0 or 1)."""

import sys

from shared import settings as settings_module
from shared.database import Database, DatabaseUnavailable
from shared.errors import HostNotFound
from shared.fleet import Fleet
from shared.settings import SettingsError


def main() -> int:
    try:
        settings = settings_module.from_environment()
        record = Database(settings.database_url.get_secret_value(), connections=1)
        status = str(Fleet(record).host(settings.host_name)["status"])
    except HostNotFound:
        status = "not registered"
    except (SettingsError, DatabaseUnavailable) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{settings.host_name} is {status}")
    return 0 if status in ("ready", "draining") else 1


if __name__ == "__main__":
    sys.exit(main())
