"""The page of one job: its log, files, errors and orders; nothing lost when the network goes, nobody left out."""

import hashlib
import re
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import WebSocketRoute, expect
from websockets.sync.client import connect

from epochcast.jobs import GpuMemory, JobError, Status
from shared.settings import Settings
from tests.api.rest.served import Served
from tests.dashboard.conftest import NewContext, NewTraining
from tests.dashboard.driving import Dashboard, finished, status_of, submit, violations
from tests.dashboard.proxy import CuttableProxy
from tests.platform import Platform
from tests.waiting import wait_until

pytestmark = pytest.mark.chromium


def test_a_whole_job_can_be_followed_to_its_model(dashboard: Dashboard, client: httpx2.Client, tmp_path: Path) -> None:
    job_id = submit(client, name="whole", total_epochs=12)
    dashboard.go(f"/jobs/{job_id}")
    page = dashboard.page
    expect(page.get_by_test_id("progress")).to_have_text("100 %")
    dashboard.shows(12)
    expect(page.get_by_role("img", name="loss over 12 epochs")).to_be_visible()
    # Stays, though the socket has closed.
    expect(page.locator("main [data-phase='ended']")).to_be_visible()
    expect(page.locator(".job-title .status")).to_have_text("succeeded")

    model_id = client.get(f"/training-jobs/{job_id}").json()["model_id"]
    path = dashboard.download(dashboard.button("Download model"), tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == client.get(f"/models/{model_id}").json()["sha256"]
    table = dashboard.download(dashboard.button("Download CSV"), tmp_path)
    assert len(table.read_text().splitlines()) == 1 + 12


def test_the_log_can_be_searched_filtered_and_downloaded(
    dashboard: Dashboard, client: httpx2.Client, tmp_path: Path
) -> None:
    job_id = submit(client)
    finished(client, job_id)
    dashboard.go(f"/jobs/{job_id}")
    log = dashboard.page.get_by_role("log")
    expect(log).to_contain_text("Epoch 6/6")
    dashboard.page.get_by_role("searchbox", name="Search the log").fill("epoch 3/6")
    expect(log.locator(".line")).to_have_count(1)
    dashboard.page.get_by_label("Least level").select_option("ERROR")
    expect(log).to_contain_text("No line is like that")
    path = dashboard.download(dashboard.button("Download"), tmp_path)
    assert path.name == f"job-{job_id}.log"
    lines = client.get(f"/training-jobs/{job_id}/logs", headers={"Accept": "text/plain"}).text
    assert path.read_text() == lines


def test_a_job_is_stopped_and_restarted_after_a_question(dashboard: Dashboard, client: httpx2.Client) -> None:
    job_id = submit(client, name="endless", total_epochs=1_000_000)
    dashboard.go(f"/jobs/{job_id}")
    page = dashboard.page
    expect(page.locator(".job-title .status")).to_have_text("running")
    dashboard.button("Stop").click()
    dashboard.button("Cancel").click()
    expect(dashboard.button("Stop")).to_be_focused()
    assert status_of(client, job_id) == "running"
    dashboard.button("Stop").click()
    dashboard.button("Stop the job").click()
    expect(page.locator(".job-title .status")).to_have_text("stopped")
    dashboard.button("Restart").click()
    dashboard.button("Restart the job").click()
    # The stream of the run before has ended; the page follows the new one all the same.
    expect(page.locator(".job-title .status")).to_have_text("running")
    expect(page.locator("main [data-phase='live']")).to_be_visible()
    expect(page.get_by_role("region", name="Attempts").get_by_role("listitem")).to_have_count(2)
    client.post(f"/training-jobs/{job_id}/stop")
    expect(page.locator(".job-title .status")).to_have_text("stopped")


def test_a_network_that_goes_and_comes_back_leaves_no_hole_in_the_curve(
    running: Platform, new_context: NewContext, client: httpx2.Client
) -> None:
    job_id = submit(client, total_epochs=1_000_000)
    with CuttableProxy(running.url) as proxy:
        dashboard = Dashboard.open(new_context().new_page(), proxy.url, running.token)
        dashboard.go(f"/jobs/{job_id}")
        expect(dashboard.page.locator("main [data-phase='live']")).to_be_visible()
        wait_until(lambda: epoch_of(client, job_id) > 3, "some epochs", timeout_s=60)
        proxy.cut()
        expect(dashboard.page.locator("main [data-phase='waiting']")).to_be_visible()
        expect(dashboard.page.locator(".top [data-phase='waiting']")).to_be_visible()
        missed = epoch_of(client, job_id) + 5
        wait_until(lambda: epoch_of(client, job_id) > missed, "epochs that the page misses", timeout_s=60)
        proxy.mend()
        expect(dashboard.page.locator("main [data-phase='live']")).to_be_visible()
        client.post(f"/training-jobs/{job_id}/stop")
        expect(dashboard.page.locator("main [data-phase='ended']")).to_be_visible()
        # Each epoch is a column of its own: as many as the last one's number, if there is no hole.
        finished(client, job_id)
        dashboard.shows(epoch_of(client, job_id))


def test_a_call_that_nobody_answered_is_made_again(dashboard: Dashboard, client: httpx2.Client) -> None:
    job_id = submit(client, total_epochs=2)
    finished(client, job_id)
    page = dashboard.page
    page.route("**/api/v1/training-jobs/*/attempts", lambda route: route.abort(), times=1)
    dashboard.go(f"/jobs/{job_id}")
    trouble = page.get_by_text("the gateway does not answer")
    expect(trouble).to_be_visible()
    expect(page.get_by_role("region", name="Attempts")).to_contain_text("succeeded")
    expect(trouble).to_have_count(0)


def test_a_connection_that_is_dead_without_a_word_is_found_out_and_replaced(
    running: Platform, new_context: NewContext, client: httpx2.Client
) -> None:
    job_id = submit(client, total_epochs=1_000_000)
    with CuttableProxy(running.url) as proxy:
        page = new_context().new_page()
        page.clock.install()
        dashboard = Dashboard.open(page, proxy.url, running.token)
        dashboard.go(f"/jobs/{job_id}")
        live = dashboard.page.locator("main [data-phase='live']")
        expect(live).to_be_visible()
        proxy.swallow()
        # After 20 s of silence the page asks by HTTP, and after 5 s more without an answer it knows.
        page.clock.fast_forward(21_000)
        expect(live).to_have_count(0)
        proxy.mend()
        expect(live).to_be_visible()
        client.post(f"/training-jobs/{job_id}/stop")
        expect(dashboard.page.locator("main [data-phase='ended']")).to_be_visible()
        finished(client, job_id)
        dashboard.shows(epoch_of(client, job_id))


def epoch_of(client: httpx2.Client, job_id: int) -> int:
    return int(client.get(f"/training-jobs/{job_id}").json()["current_epoch"])


OUT_OF_MEMORY = JobError(
    type="cuda_oom",
    message="CUDA out of memory",
    detail="Tried to allocate 20.00 GiB",
    host="gpu-3",
    gpu="NVIDIA H200",
    epoch=3,
    memory=GpuMemory(
        requested_gib=20, free_gib=1.2, allocated_gib=130.1, reserved_gib=137.9, total_gib=139.8, others_gib=0.4
    ),
    verdict="batch too large by about 1.2x: try batch_size <= 96",
)


def test_the_11th_viewer_of_a_job_sees_it_move_and_goes_live_when_one_leaves(
    sqlite_settings: Settings, new_context: NewContext, new_training: NewTraining
) -> None:
    training = new_training(epochs=10)
    training.report(3)
    with Served(sqlite_settings) as served, ExitStack() as viewers:
        address = f"{served.url.replace('http', 'ws')}/api/v1/training-jobs/{training.job_id}/ws"
        ten = [viewers.enter_context(connect(f"{address}?token={served.token()}")) for _ in range(10)]
        for viewer in ten:
            viewer.recv(timeout=20)  # it has its place
        dashboard = Dashboard.open(new_context().new_page(), served.url, served.token())
        dashboard.go(f"/jobs/{training.job_id}")
        page = dashboard.page
        expect(page.locator("main [data-phase='polling']")).to_be_visible()
        expect(page.get_by_text("All places on this job's live stream are taken")).to_be_visible()
        assert violations(page) == []
        training.report(2)
        expect(page.get_by_text("epoch 5 of 10")).to_be_visible()
        dashboard.shows(5)
        ten[0].close()
        expect(page.locator("main [data-phase='live']")).to_be_visible()
        training.finish()
        expect(page.locator("main [data-phase='ended']")).to_be_visible()
        expect(page.get_by_test_id("progress")).to_have_text("100 %")
        dashboard.shows(5)


def test_while_a_long_past_is_told_again_the_page_stays_in_the_present(
    sqlite_settings: Settings, new_context: NewContext, new_training: NewTraining
) -> None:
    training = new_training()
    training.report(80)
    training.archive()
    with Served(sqlite_settings) as served:
        page = new_context().new_page()
        # Every progress that the page ever shows; and its messages, one by one and slowly.
        page.add_init_script(
            """
            window.shown = new Set();
            const look = () => {
              window.shown.add(document.querySelector('[data-testid=progress]')?.textContent ?? null);
              requestAnimationFrame(look);
            };
            look();
            """
        )
        held: list[str | bytes] = []
        sockets: list[WebSocketRoute] = []

        def hold(message: str | bytes) -> None:
            held.append(message)

        def intercept(route: WebSocketRoute) -> None:
            route.connect_to_server().on_message(hold)
            sockets.append(route)

        page.route_web_socket(re.compile(f"/training-jobs/{training.job_id}/ws"), intercept)
        dashboard = Dashboard.open(page, served.url, served.token())
        dashboard.go(f"/jobs/{training.job_id}")
        expect(page.get_by_test_id("progress")).to_have_text("8 %")
        training.report(10)
        while len(held) < 91:  # the browser's events are only taken while its page is waited for
            page.wait_for_timeout(50)
        for at, message in enumerate(held):
            sockets[0].send(message)
            if at % 10 == 0:
                page.wait_for_timeout(60)  # more than the stream waits until it tells of them
        expect(page.get_by_test_id("progress")).to_have_text("9 %")
        dashboard.shows(90)
        assert set(page.evaluate("[...window.shown]")) - {None} == {"8 %", "9 %"}


def test_out_of_memory_is_shown_as_a_bar_with_its_verdict(
    sqlite_settings: Settings, new_context: NewContext, new_training: NewTraining
) -> None:
    training = new_training(epochs=10)
    training.report(3)
    training.archive()
    training.finish(Status.FAILED, error=OUT_OF_MEMORY)
    with Served(sqlite_settings) as served:
        dashboard = Dashboard.open(new_context().new_page(), served.url, served.token())
        dashboard.go(f"/jobs/{training.job_id}")
        panel = dashboard.page.get_by_role("region", name="GPU memory used up")
        expect(panel).to_contain_text("try batch_size <= 96")
        bar = panel.get_by_role("img", name="GPU memory of 140 GiB: tensors 130 GiB")
        expect(bar).to_be_visible()
        expect(panel).to_contain_text("requested 20 GiB")
        dashboard.shows(3)


def test_a_job_opened_in_a_tab_behind_is_there_when_one_looks(
    running: Platform, new_context: NewContext, client: httpx2.Client
) -> None:
    job_id = submit(client, total_epochs=2)
    page = new_context().new_page()
    page.add_init_script("Object.defineProperty(document, 'hidden', { get: () => true })")
    Dashboard.open(page, running.url, running.token).go(f"/jobs/{job_id}")
    expect(page.get_by_test_id("progress")).to_have_text("100 %")


def test_a_job_that_is_not_there_says_so(dashboard: Dashboard) -> None:
    dashboard.go("/jobs/999999")
    expect(dashboard.page.get_by_role("heading", name="There is no job 999999")).to_be_visible()
