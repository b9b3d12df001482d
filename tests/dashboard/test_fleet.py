"""The fleet's page: hosts that live and hosts that don't, GPUs and who holds them, draining."""

from dataclasses import replace

import httpx2
import pytest
from playwright.sync_api import expect

from shared.database import Database
from shared.fleet import Fleet, GpuState, HostState
from shared.settings import Settings
from tests.api.rest.served import Served, submit
from tests.dashboard.conftest import NewContext
from tests.dashboard.driving import Dashboard, violations

pytestmark = pytest.mark.chromium

GIB = 2**30


def test_a_host_is_drained_after_a_question_and_resumed(dashboard: Dashboard, client: httpx2.Client) -> None:
    dashboard.go("/fleet")
    host = dashboard.page.get_by_role("article")
    expect(host.locator(".status")).to_have_text("ready")
    host.get_by_role("button", name="Drain").click()
    dashboard.button("Drain the host").click()
    expect(host.locator(".status")).to_have_text("draining")
    assert client.get("/hosts").json()["items"][0]["status"] == "draining"
    host.get_by_role("button", name="Resume").click()
    expect(host.locator(".status")).to_have_text("ready")


def host(name: str, *gpus: GpuState) -> HostState:
    return HostState(
        name=name,
        instance=name,
        boot_id="boot",
        pid_namespace="namespace",
        slots=4,
        cpus=64,
        memory_total_bytes=1024 * GIB,
        memory_used_bytes=310 * GIB,
        cpu_percent=37.0,
        versions={"torch": "2.13.0", "cuda": "13.0"},
        gpus=gpus,
    )


def gpu(index: int, used_gib: int, **fields: object) -> GpuState:
    state = GpuState(f"GPU-{index}", index, "NVIDIA H200", 140 * GIB, used_gib * GIB, utilisation=0)
    return replace(state, **fields)  # type: ignore[arg-type]


def enter(settings: Settings) -> None:
    """Two hosts: one with a GPU that is free and one that others use; one that has left."""
    database = Database(settings.database_url.get_secret_value())
    fleet = Fleet(database)
    foreign = gpu(1, 20, utilisation=97, users=({"pid": 4711, "used_bytes": 20 * GIB},))
    for state in (host("gpu-3", gpu(0, 0), foreign), host("gpu-4", gpu(0, 0, uuid="GPU-of-another"))):
        fleet.register(state, 0, lambda _: False)
    fleet.leave("gpu-4", "gpu-4")
    database.close()


def test_gpus_show_who_holds_them_and_a_host_that_is_gone_is_seen_at_once(
    sqlite_settings: Settings, new_context: NewContext
) -> None:
    enter(sqlite_settings)
    with Served(sqlite_settings) as served:
        job_id = submit(served.client("alice"), resources={"gpus": 1, "gpu_memory_gib": 130})["job_id"]
        dashboard = Dashboard.open(new_context().new_page(), served.url, served.token("alice", "jobs:read"))
        dashboard.go("/fleet")
        alive = dashboard.page.get_by_role("article", name="gpu-3")
        rows = alive.locator(".gpu")
        # The gateway's own dispatcher has placed it.
        expect(rows.nth(0).get_by_role("link", name=f"job {job_id}")).to_be_visible()
        expect(rows.nth(1)).to_contain_text("used by pid 4711")
        expect(rows.nth(1)).to_contain_text("20 GiB of 140 GiB")
        # This token may only read.
        expect(alive.get_by_role("button", name="Drain")).to_have_count(0)
        gone = dashboard.page.get_by_role("article", name="gpu-4")
        expect(gone.locator(".status")).to_have_text("unreachable")
        expect(gone).to_contain_text("It has shut down")
        assert violations(dashboard.page) == []
