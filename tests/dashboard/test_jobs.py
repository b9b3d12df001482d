"""Signing in, and the list of jobs: live, found by words, sorted, and as good with a thousand as with three."""

import re
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Route, WebSocketRoute, expect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from epochcast.jobs import Resources, TrainingJobSpec
from shared import tokens
from shared.database import Database
from shared.embedded import free_port
from shared.settings import Settings
from shared.store import Store
from tests.api.rest.served import Served
from tests.dashboard.conftest import NewContext, NewTraining
from tests.dashboard.driving import Dashboard, submit
from tests.dashboard.proxy import CuttableProxy
from tests.faults.service import Service
from tests.platform import Platform
from tests.waiting import wait_until
from tests.worker.host import environment

pytestmark = pytest.mark.chromium


def test_a_link_with_a_token_signs_in_and_the_token_leaves_the_address(dashboard: Dashboard) -> None:
    assert dashboard.page.url == f"{dashboard.url}/"
    expect(dashboard.button("Sign out")).to_be_visible()
    dashboard.page.reload()
    expect(dashboard.button("Sign out")).to_be_visible()
    assert dashboard.page.evaluate("localStorage.length") == 0


def test_without_a_token_the_page_asks_for_one_and_says_why_it_refuses(
    running: Platform, new_context: NewContext
) -> None:
    page = new_context().new_page()
    page.goto(running.url)
    page.get_by_label("Token").fill("nonsense")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("token")
    page.get_by_label("Token").fill(str(running.token))
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize("token", ["eyJhbGciOi.eyJzdWIi.c2ln)", "eyJ%20eyJ", "eyJ%E2%80%A6"])
def test_a_link_whose_token_was_damaged_on_its_way_asks_for_another(
    running: Platform, new_context: NewContext, token: str
) -> None:
    page = new_context().new_page()
    page.goto(f"{running.url}/#token={token}")
    expect(page.get_by_role("alert")).to_contain_text("token")
    page.get_by_label("Token").fill("eyJ…")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("copy it again")
    page.get_by_label("Token").fill(str(running.token))
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator(".top [data-phase='live']")).to_be_visible()


def test_when_the_token_expires_the_page_asks_for_another(running: Platform, new_context: NewContext) -> None:
    secret = (running.data_dir / "secret").read_text().strip()
    token = tokens.create("alice", ("jobs:read",), days=8 / 86_400, secret=secret)
    page = new_context().new_page()
    page.goto(f"{running.url}/#token={token}")
    expect(page.get_by_role("alert")).to_contain_text("expired")
    page.get_by_label("Token").fill(str(running.token))
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator(".top [data-phase='live']")).to_be_visible()


def test_signing_in_again_with_the_same_token_brings_the_live_updates_back(
    running: Platform, new_context: NewContext
) -> None:
    page = new_context().new_page()
    refusals = [True]

    def socket(route: WebSocketRoute) -> None:
        if refusals:
            refusals.pop()
            route.close(code=1008, reason="invalid token")
        else:
            route.connect_to_server()

    page.route_web_socket("**/training-jobs/ws", socket)
    page.goto(f"{running.url}/#token={running.token}")
    page.get_by_label("Token").fill(str(running.token))
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator(".top [data-phase='live']")).to_be_visible()


def test_a_new_job_appears_and_reaches_its_end_without_a_reload(dashboard: Dashboard, client: httpx2.Client) -> None:
    expect(dashboard.page.locator(".top [data-phase='live'] .dot")).to_be_visible()
    job_id = submit(client, name="appears")
    row = dashboard.row(job_id)
    expect(row).to_contain_text("appears")
    expect(row.locator(".status")).to_have_text("succeeded")
    expect(row).to_contain_text("100 %")


def test_who_may_only_read_is_offered_nothing_else(running: Platform, new_context: NewContext) -> None:
    secret = (running.data_dir / "secret").read_text().strip()
    token = tokens.create("reader", ("jobs:read",), days=1, secret=secret)
    dashboard = Dashboard.open(new_context().new_page(), running.url, token)
    page = dashboard.page
    expect(page.get_by_text("Jobs show up here")).to_be_visible()
    for name in ("Submit", "New job", "Submit the first one"):
        expect(page.get_by_role("link", name=name)).to_have_count(0)
    dashboard.go("/submit")
    expect(page.get_by_text("lacks the scope jobs:write")).to_be_visible()
    expect(dashboard.button("Submit job")).to_be_disabled()


def test_no_log_holds_the_token_of_anybody_who_used_the_pages(
    sqlite_settings: Settings, new_context: NewContext, new_training: NewTraining, tmp_path: Path
) -> None:
    training = new_training()
    training.report(3)
    port, log = free_port(), tmp_path / "gateway.log"
    url, stream = f"http://127.0.0.1:{port}", f"/api/v1/training-jobs/{training.job_id}"
    assert sqlite_settings.secret is not None
    token = tokens.create("alice", ("jobs:read",), days=1, secret=sqlite_settings.secret.get_secret_value())
    gateway = Service("api", environment(sqlite_settings) | {"EPOCHCAST_PORT": str(port)}, log)
    gateway.start()
    with httpx2.Client(base_url=url, trust_env=False, timeout=30) as client:
        wait_until(lambda: answers(client), "the gateway", timeout_s=60)
        dashboard = Dashboard.open(new_context().new_page(), url, token)
        dashboard.go(f"/jobs/{training.job_id}")
        expect(dashboard.page.locator("main [data-phase='live']")).to_be_visible()
        # The other ways in which a client may show it; and one that is refused for it.
        for shown in (token, token + "x"):
            with connect(f"ws://127.0.0.1:{port}{stream}/ws?token={shown}") as socket, suppress(ConnectionClosed):
                socket.recv(timeout=20)
            client.get(f"{stream}/events?token={shown}")
            client.get(stream, headers={"Authorization": f"Bearer {shown}"})
    assert gateway.end() == 0
    lines = log.read_text()
    assert lines.count(f'"WebSocket {stream}/ws') == 3
    assert f"{stream}/events?token=[redacted]" in lines
    assert [part for part in token.split(".")[1:] if part in lines] == []


def answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def test_places_in_the_queue_are_read_again_on_older_pages_too(crowded: Served, new_context: NewContext) -> None:
    with crowded as served:
        page = new_context().new_page()
        page.clock.install()
        dashboard = Dashboard.open(page, served.url, served.token("alice", "jobs:read", "jobs:all"))
        page.get_by_role("searchbox", name="Search jobs").fill("#1 job-1")
        row = dashboard.row(1)
        expect(row).to_be_visible()
        before = row.inner_text()
        store = Store(Database(served.settings.database_url.get_secret_value()))
        spec = TrainingJobSpec(
            recipe="image-classifier", name="urgent", total_epochs=9, priority=9, resources=Resources(gpus=4)
        )
        store.create(spec, "alice")
        page.clock.fast_forward(31_000)
        expect(row).not_to_have_text(before)
        store.database.close()


def test_a_gateway_that_falls_silent_is_noticed(running: Platform, new_context: NewContext) -> None:
    with CuttableProxy(running.url) as proxy:
        page = new_context().new_page()
        page.clock.install()
        Dashboard.open(page, proxy.url, running.token)
        live = page.locator(".top [data-phase='live']")
        expect(live).to_be_visible()
        proxy.swallow()
        # As a job's own stream: after 20 s of silence somebody else is asked, and nobody answers.
        page.clock.fast_forward(21_000)
        expect(live).to_have_count(0)
        # The list's own call is given up too, and the page says so.
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        proxy.mend()
        expect(live).to_be_visible()
        page.clock.fast_forward(10_000)
        expect(page.get_by_role("alert")).to_have_count(0)


def test_a_waiting_job_says_why_it_waits(dashboard: Dashboard, client: httpx2.Client) -> None:
    job_id = submit(client, name="too large", resources={"gpus": 8})
    expect(dashboard.row(job_id)).to_contain_text("needs 8 GPUs")
    client.post(f"/training-jobs/{job_id}/stop")
    expect(dashboard.row(job_id).locator(".status")).to_have_text("stopped")


def test_a_running_job_that_is_older_than_the_newest_page_counts(
    sqlite_settings: Settings, new_context: NewContext, new_training: NewTraining
) -> None:
    training = new_training(epochs=10)
    training.report(3)
    training.archive()
    store = Store(training.database)
    spec = TrainingJobSpec(recipe="image-classifier", total_epochs=9, resources=Resources(gpus=4))
    for _ in range(250):
        store.create(spec, "alice")
    with Served(sqlite_settings) as served:
        token = served.token("alice", "jobs:read", "jobs:all")
        page = Dashboard.open(new_context().new_page(), served.url, token).page
        expect(page.get_by_role("button", name=re.compile("^running"))).to_have_text("running 1")
        expect(page.get_by_role("button", name=re.compile("^queued"))).to_have_text("queued 250")
        expect(page).to_have_title(re.compile("^1 running"))
        # The rest of the list is read when it is asked for, and what ends while the network is away is not missed.
        with CuttableProxy(served.url) as proxy:
            unread = Dashboard.open(new_context().new_page(), proxy.url, token).page
            expect(unread.get_by_role("button", name=re.compile("^running"))).to_have_text("running 1")
            dashboard = Dashboard.open(new_context().new_page(), proxy.url, token)
            dashboard.page.get_by_role("searchbox", name="Search jobs").fill(f"#{training.job_id} test")
            row = dashboard.row(training.job_id)
            expect(row.locator(".status")).to_have_text("running")
            proxy.cut()
            expect(dashboard.page.locator(".top [data-phase='waiting']")).to_be_visible()
            training.finish()
            proxy.mend()
            expect(row.locator(".status")).to_have_text("succeeded")
            # Nor where that part of the list was never read.
            expect(unread.get_by_role("button", name=re.compile("^running"))).to_have_text("running 0")


def test_an_older_page_that_could_not_be_read_is_asked_for_again(crowded: Served, new_context: NewContext) -> None:
    with crowded as served:
        page = new_context().new_page()
        fails = [True]

        def answer(route: Route) -> None:
            if fails:
                fails.pop()
                route.abort()
            else:
                route.continue_()

        page.route("**/training-jobs?*cursor=*", answer)
        dashboard = Dashboard.open(page, served.url, served.token("alice", "jobs:read", "jobs:all"))
        page.get_by_role("searchbox", name="Search jobs").fill("#1 job-1")
        expect(dashboard.row(1)).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)


@pytest.fixture
def crowded(sqlite_settings: Settings) -> Served:
    """A gateway with a thousand jobs that wait for GPUs."""
    store = Store(Database(sqlite_settings.database_url.get_secret_value()))
    for number in range(1, 1001):
        spec = TrainingJobSpec(
            recipe="image-classifier",
            name=f"job-{number % 7}",
            total_epochs=9,
            resources=Resources(gpus=4),
            tags=["many"],
        )
        store.create(spec, "alice" if number % 2 else "bob")
    store.database.close()
    return Served(sqlite_settings)


def test_a_thousand_jobs_are_listed_searched_and_sorted_but_only_those_on_the_screen_are_painted(
    crowded: Served, new_context: NewContext
) -> None:
    with crowded as served:
        token = served.token("alice", "jobs:read", "jobs:all")
        dashboard = Dashboard.open(new_context().new_page(), served.url, token)
        page = dashboard.page
        expect(dashboard.row(1000)).to_be_visible()
        page.get_by_role("searchbox", name="Search jobs").fill("job-3 bob")
        expect(page.get_by_role("table")).to_have_attribute("aria-rowcount", str(1 + 71))
        assert "search=job-3+bob" in page.url
        page.get_by_role("searchbox", name="Search jobs").fill("")
        expect(page.get_by_role("table")).to_have_attribute("aria-rowcount", "1001")
        page.get_by_role("button", name="Job", exact=True).click()
        expect(page.get_by_role("columnheader", name=re.compile("^Job"))).to_have_attribute("aria-sort", "ascending")
        expect(dashboard.row(1)).to_be_visible()
        assert page.locator("tr[data-job]").count() < 100
        page.keyboard.press("End")
        expect(dashboard.row(1000)).to_be_visible()
        assert page.locator("tr[data-job]").count() < 100
