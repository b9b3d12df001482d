"""The compose files and Dockerfiles, as far as they can be checked without an engine: parsed as podman-compose does."""

import copy
import re
from pathlib import Path
from typing import Any

import podman_compose
import pytest

from shared.settings import Settings

CHECKOUT = Path(__file__).parent.parent
SECRETS = {"EPOCHCAST_SECRET": "s" * 32, "POSTGRES_PASSWORD": "p", "REDIS_PASSWORD": "r"}
FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
DOCKERFILES = ("api/Dockerfile", "worker/Dockerfile")


def parsed(*files: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The files merged, with variables filled in and short forms written out."""
    merged: dict[str, Any] = {}
    for file in files:
        content = podman_compose.normalize(podman_compose.load_yaml_or_die(file, (CHECKOUT / file).read_text()))
        podman_compose.rec_merge(merged, podman_compose.rec_subs(content, environment or SECRETS))
    return dict(podman_compose.normalize_final(merged, str(CHECKOUT)))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(parsed(FILES[0])["services"])


def test_every_service_of_a_server_is_there(services: dict[str, Any]) -> None:
    assert set(services) == {"migrate", "gateway", "worker", "postgres", "broker", "events"}


def test_dependencies_resolve_and_form_no_ring(services: dict[str, Any]) -> None:
    resolved = copy.deepcopy(services)
    podman_compose.flat_deps(resolved)
    assert {str(dependency.name) for dependency in resolved["worker"]["_deps"]} >= {
        "migrate",
        "postgres",
        "broker",
        "events",
    }


@pytest.mark.parametrize("service", ["gateway", "worker"])
def test_gateway_and_worker_start_after_the_migration(services: dict[str, Any], service: str) -> None:
    assert services[service]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_every_lasting_service_has_a_health_check_and_comes_back(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if name != "migrate":
            assert service["healthcheck"]["test"], name
            assert service["restart"] == "unless-stopped", name


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_without_a_secret_nothing_starts(missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        parsed(FILES[0], environment={name: value for name, value in SECRETS.items() if name != missing})


def test_no_secret_has_a_default() -> None:
    text = (CHECKOUT / FILES[0]).read_text()
    for name in SECRETS:
        assert set(re.findall(rf"\$\{{{name}([^}}]*)\}}", text)) == {":?see docs/docker.md"}


@pytest.mark.parametrize("file", FILES)
def test_every_variable_of_ours_is_a_setting(file: str) -> None:
    known = {f"EPOCHCAST_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"EPOCHCAST_[A-Z_]+", (CHECKOUT / file).read_text())) <= known


@pytest.mark.parametrize("service", ["migrate", "gateway", "worker"])
def test_settings_accept_the_environment(
    services: dict[str, Any], service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in services[service]["environment"].items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.database_url.get_secret_value() == "postgresql+psycopg://epochcast:p@postgres:5432/epochcast"
    assert "@broker:" in settings.broker_url.get_secret_value()
    assert "@events:" in settings.events_redis_url


def test_broker_and_events_are_two_servers_that_never_evict(services: dict[str, Any]) -> None:
    for name in ("broker", "events"):
        command = services[name]["command"]
        assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert "--appendonly" in services["events"]["command"]


def test_only_the_gateway_is_reachable_and_only_from_this_machine(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert published == {"gateway": ["127.0.0.1:8000:8000"]}


def test_worker_is_given_no_signing_secret(services: dict[str, Any]) -> None:
    assert "EPOCHCAST_SECRET" not in services["worker"]["environment"]


def test_named_volumes_are_declared() -> None:
    content = parsed(FILES[0])
    used = {volume.split(":")[0] for service in content["services"].values() for volume in service.get("volumes", [])}
    assert used == set(content["volumes"])


def test_override_gives_the_worker_every_gpu() -> None:
    worker = parsed(*FILES)["services"]["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", "all", ["gpu"])
    assert worker["image"] == "epochcast-worker"


@pytest.mark.parametrize("file", DOCKERFILES)
def test_dockerfile_copies_what_exists_and_runs_unprivileged(file: str) -> None:
    lines = (CHECKOUT / file).read_text().splitlines()
    shipped = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in (line for line in lines if line.startswith("COPY ") and "--from=" not in line):
        for source in line.split()[1:-1]:
            assert (CHECKOUT / source).exists(), f"{file} copies {source}"
            assert source in shipped, f".dockerignore keeps {source} out"
    assert lines.index("USER epochcast") > max(i for i, line in enumerate(lines) if line.startswith(("RUN", "COPY")))


def test_compose_builds_with_the_dockerfiles_beside_the_code(services: dict[str, Any]) -> None:
    assert services["gateway"]["build"]["dockerfile"] == "api/Dockerfile"
    assert services["worker"]["build"]["dockerfile"] == "worker/Dockerfile"
