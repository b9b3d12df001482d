"""`doctor` finds what is wrong, says the way out, and finds nothing wrong where all is well."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shared import doctor
from shared.doctor import Finding
from shared.embedded import RedisServer
from shared.settings import Settings

CHECKOUT = Path(__file__).parents[2]


def environment_of(settings: Settings) -> dict[str, str]:
    assert settings.secret is not None
    return {
        "PATH": "/usr/bin:/bin",
        "EPOCHCAST_DATABASE_URL": settings.database_url.get_secret_value(),
        "EPOCHCAST_BROKER_URL": settings.broker_url.get_secret_value(),
        "EPOCHCAST_ARTIFACTS_URL": settings.artifacts_url,
        "EPOCHCAST_WORK_DIR": str(settings.work_dir),
        "EPOCHCAST_SECRET": settings.secret.get_secret_value(),
    }


def run(module: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120)


def findings(**environment: str) -> tuple[int, dict[str, dict[str, object]]]:
    ran = run("shared.doctor", "--json", **environment)
    assert ran.stderr == ""
    return ran.returncode, {finding["subject"]: finding for finding in json.loads(ran.stdout)}


def test_all_is_well(settings: Settings) -> None:
    code, found = findings(**environment_of(settings))
    assert (code, [name for name, finding in found.items() if not finding["ok"]]) == (0, [])
    assert set(found) == {"python", "settings", "tokens", "sql", "broker", "events", "artifacts", "disk", "torch"}


@pytest.mark.parametrize(
    ("setting", "value", "check"),
    [
        ("broker_url", "redis://:secretpw@127.0.0.1:1/0", doctor.check_broker),
        ("events_url", "redis://:secretpw@127.0.0.1:1/0", doctor.check_events),
        ("broker_url", "not a url", doctor.check_broker),
        ("database_url", "postgresql+psycopg://u:secretpw@127.0.0.1:1/x", doctor.check_sql),
        ("database_url", "sqlite:////nowhere/at/all.db", doctor.check_sql),
        ("database_url", "not a url", doctor.check_sql),
        ("artifacts_url", "file:///proc/artifacts", doctor.check_artifacts),
        ("artifacts_url", "ftp://nowhere", doctor.check_artifacts),
        ("secret", None, doctor.check_tokens),
    ],
)
def test_fault_is_found_with_a_way_out(
    sqlite_settings: Settings, setting: str, value: str | None, check: Callable[[Settings], Finding]
) -> None:
    finding = check(Settings.model_validate({**sqlite_settings.model_dump(), setting: value}))
    assert not finding.ok
    assert finding.way_out
    assert "secretpw" not in str(finding)


def test_eviction_is_found(sqlite_settings: Settings, redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        finding = doctor.check_broker(sqlite_settings)
        client.config_set("maxmemory-policy", "noeviction")
    assert not finding.ok
    assert "allkeys-lru" in finding.detail


@pytest.mark.parametrize(("variable", "value"), [("EPOCHCAST_SECRET", "short"), ("EPOCHCAST_PORT", "99999")])
def test_wrong_setting_is_named(variable: str, value: str) -> None:
    code, found = findings(**{"PATH": "/usr/bin:/bin", variable: value})
    assert code == 1
    assert variable in str(found["settings"]["detail"])


def test_database_without_migrations_is_found_and_the_way_out_works(sqlite_settings: Settings, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    settings = Settings.model_validate({**sqlite_settings.model_dump(), "database_url": url})
    assert not doctor.check_sql(settings).ok
    assert run("shared.migrate", PATH="/usr/bin:/bin", EPOCHCAST_DATABASE_URL=url).returncode == 0
    assert doctor.check_sql(settings).ok


def test_migrating_an_unreachable_database_fails_in_one_line() -> None:
    ran = run("shared.migrate", PATH="/usr/bin:/bin", EPOCHCAST_DATABASE_URL="postgresql+psycopg://u@127.0.0.1:1/x")
    assert ran.returncode == 1
    assert ran.stderr.startswith("epochcast migrate: ")
    assert "Traceback" not in ran.stderr


def test_host_health_follows_the_workers_registration(sqlite_settings: Settings) -> None:
    ran = run("shared.host_health", **environment_of(sqlite_settings), EPOCHCAST_HOST_NAME="gpu-3")
    assert (ran.returncode, ran.stdout) == (1, "gpu-3 is not registered\n")
