"""Looks at everything a gateway or worker needs and says what is missing (`python -m shared.doctor`)."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit

import obstore
import redis
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared import settings as settings_module
from shared.artifacts import ArtifactStore, ArtifactsUnavailable
from shared.database import MIGRATIONS, Database, DatabaseUnavailable
from shared.settings import Settings, SettingsError
from shared.tokens import TokenError, Verifier

OLDEST_REDIS = (6, 2)
NEEDED_DISK_GIB = 1.0
_MIGRATE = "migrate: python -m shared.migrate"


@dataclass(frozen=True)
class Finding:
    """One line of the report; `way_out` says what to do when it isn't ok."""

    subject: str
    ok: bool
    detail: str
    way_out: str = ""

    def __str__(self) -> str:
        line = f"{'ok  ' if self.ok else 'FAIL'} {self.subject:<10} {self.detail}"
        return line if self.ok else f"{line}\n     {'':<10} -> {self.way_out}"


def examine() -> Iterator[Finding]:
    """One finding after the other, as they become known."""
    yield check_python()
    try:
        settings = settings_module.from_environment()
    except SettingsError as error:
        yield Finding("settings", False, str(error), "correct the variable; docs/settings.md describes each")
        return
    yield Finding("settings", True, "all EPOCHCAST_* values can be used")
    checks: list[Callable[[Settings], Finding]] = [check_tokens, check_sql, check_broker, check_events]
    for check in [*checks, check_artifacts, check_disk]:
        yield check(settings)
    yield check_torch()


def check_python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), version, "use Python 3.11 or newer")


def check_tokens(settings: Settings) -> Finding:
    if settings.auth == "none":
        return Finding("tokens", True, "EPOCHCAST_AUTH=none: no tokens, loopback only")
    try:
        Verifier(settings)
    except TokenError as error:
        return Finding("tokens", False, str(error), "set EPOCHCAST_SECRET to the same value on every gateway")
    return Finding("tokens", True, "keys by JWKS" if settings.jwks_url else "EPOCHCAST_SECRET is set")


def check_sql(settings: Settings) -> Finding:
    """Reachable, and migrated to what this version's code expects."""
    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    try:
        url = sa.make_url(settings.database_url.get_secret_value())
        if url.get_backend_name() == "sqlite" and not os.path.exists(url.database or ""):
            way_out = f"correct EPOCHCAST_DATABASE_URL, or {_MIGRATE}"
            return Finding("sql", False, f"{url.database} does not exist", way_out)
        record = Database(url.render_as_string(hide_password=False), connections=1)
        with record.read() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
    except (DatabaseUnavailable, sa.exc.SQLAlchemyError, OSError) as error:
        return Finding("sql", False, _first_line(error), "start the database, or correct EPOCHCAST_DATABASE_URL")
    record.close()
    name = f"{record.url.get_backend_name()}, migration {revision}"
    return Finding(
        "sql", revision == head, name if revision == head else f"{name}, needs {head}", f"migrate: {_MIGRATE}"
    )


def check_broker(settings: Settings) -> Finding:
    return _check_redis("broker", "EPOCHCAST_BROKER_URL", settings.broker_url.get_secret_value())


def check_events(settings: Settings) -> Finding:
    return _check_redis("events", "EPOCHCAST_EVENTS_URL", settings.events_redis_url)


def _check_redis(subject: str, variable: str, url: str) -> Finding:
    place = _without_password(url)
    try:
        options = {"socket_timeout": 3, "socket_connect_timeout": 3, "protocol": 2}
        with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options) as client:
            info = client.info()
    except (redis.RedisError, ValueError, OSError) as error:
        way_out = f"start Redis, or correct {variable} (`epochcast up` brings its own and needs none)"
        return Finding(subject, False, f"{place}: {_first_line(error)}", way_out)
    version, policy = str(info["redis_version"]), str(info.get("maxmemory_policy", "noeviction"))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        return Finding(subject, False, f"{place}: Redis {version}", "upgrade to Redis 6.2 or newer")
    if policy != "noeviction":
        return Finding(subject, False, f"{place}: maxmemory-policy {policy}", "CONFIG SET maxmemory-policy noeviction")
    return Finding(subject, True, f"{place}: Redis {version}, noeviction")


def check_artifacts(settings: Settings) -> Finding:
    """Writes, reads and deletes one small file."""
    key, content = f"probes/doctor-{uuid.uuid4().hex}", b"epochcast"
    try:
        store = ArtifactStore(settings.artifacts_url)
        store.write(key, content)
        same = b"".join(store.stream(key)) == content
        store.delete(key)
    except (ArtifactsUnavailable, obstore.exceptions.BaseError, OSError, ValueError) as error:
        way_out = "make the folder writable, or correct EPOCHCAST_ARTIFACTS_URL"
        return Finding("artifacts", False, f"{settings.artifacts_url}: {_first_line(error)}", way_out)
    return Finding("artifacts", same, settings.artifacts_url, "the store returns other bytes than were written")


def check_disk(settings: Settings) -> Finding:
    folder = settings.work_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free_gib = shutil.disk_usage(folder).free / 2**30
    way_out = f"free at least {NEEDED_DISK_GIB:g} GiB, or move EPOCHCAST_WORK_DIR"
    return Finding("disk", free_gib >= NEEDED_DISK_GIB, f"{free_gib:.1f} GiB free for {settings.work_dir}", way_out)


def check_torch() -> Finding:
    """In a process of its own: nothing shared with the gateway may import torch."""
    if find_spec("torch") is None:
        return Finding("torch", True, "not installed: fine for a gateway, a worker needs it")
    script = "import torch; print(torch.__version__, torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    try:
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return Finding("torch", False, f"can't be imported: {_first_line(error)}", "install it again")
    version, gpus = ran.stdout.split()
    return Finding("torch", True, f"{version}, {gpus} CUDA device{'' if gpus == '1' else 's'}")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _first_line(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    return (str(original).strip().splitlines() or [type(error).__name__])[0]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="epochcast doctor", description="Says what a gateway or worker here lacks.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    findings = []
    for finding in examine():
        findings.append(finding)
        if not options.json:
            print(finding, flush=True)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    return 0 if all(finding.ok for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
