"""`python -m api`: the gateway of this machine, as the environment (`EPOCHCAST_…`) describes it."""

import ipaddress
import signal
import sys

from api import processes, server
from shared import logs
from shared import settings as settings_module
from shared.processes import hide_memory
from shared.settings import Settings, SettingsError
from shared.tokens import NoKeys, Verifier

# What a caller did wrong, as the command line has it: starting again without a change can't help.
WRONG_SETTINGS = 2
# `up` asks for it: its terminal is for people.
QUIET = "--quiet"


def main(arguments: list[str]) -> int:
    try:
        settings = settings_module.from_environment()
        check(settings)
        hide_memory()
        one_of_many = processes.ONE_OF_MANY in arguments
        quiet = QUIET in arguments
        logs.configure(f"gateway.{arguments[-1]}" if one_of_many else "gateway", quiet=quiet)
        if settings.gateway_processes > 1 and not one_of_many:
            return processes.run(settings, [QUIET] if quiet else [])
        _serve(settings, shared=one_of_many)
    except (SettingsError, NoKeys, processes.CannotListen) as error:
        print(f"epochcast gateway: {error}", file=sys.stderr)
        return WRONG_SETTINGS
    return 0


def _serve(settings: Settings, *, shared: bool) -> None:
    # uvicorn drains at the first signal and at the end raises it again, for whoever had a handler before.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    server.serve(settings, processes.listen(settings, shared=shared))


def check(settings: Settings) -> None:
    """Refuses what would open the gateway to everybody. Raises SettingsError, NoKeys."""
    if settings.auth == "token":
        Verifier(settings)
    if _is_loopback(settings.bind):
        return
    if settings.auth == "none":
        raise SettingsError(
            f"EPOCHCAST_AUTH=none lets everybody in and is for loopback only, but EPOCHCAST_BIND is {settings.bind}; "
            "set EPOCHCAST_BIND=127.0.0.1, or EPOCHCAST_AUTH=token"
        )
    if "allowed_hosts" not in settings.model_fields_set:
        raise SettingsError(
            f"EPOCHCAST_BIND is {settings.bind}, beyond loopback: name the hosts under which the gateway is reached "
            "in EPOCHCAST_ALLOWED_HOSTS, such as train.example.com"
        )


def _is_loopback(bind: str) -> bool:
    if bind == "localhost":
        return True
    try:
        return ipaddress.ip_address(bind.strip("[]")).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
