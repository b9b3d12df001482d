"""The other pages: submitting, comparing, the fleet, models; and what holds on every page."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import httpx2
import pytest
from playwright.sync_api import Route, expect

import epochcast
from tests.dashboard.conftest import NewContext
from tests.dashboard.driving import Dashboard, finished, submit, violations
from tests.platform import CHECKOUT, Platform

pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module")
def two_jobs(running: Platform) -> tuple[int, int]:
    """Two jobs that have ended, unlike in one hyperparameter."""
    headers = {"Authorization": f"Bearer {running.token}"}
    with httpx2.Client(base_url=f"{running.url}/api/v1", headers=headers, trust_env=False, timeout=30) as client:
        parameters = {"model": "mlp", "width": 8}
        first = submit(client, name="slow", hyperparameters=parameters | {"lr": 0.001})
        second = submit(client, name="fast", hyperparameters=parameters | {"lr": 0.02})
        finished(client, first, second)
    return first, second


def test_jobs_picked_in_the_list_are_compared_at_an_address_that_can_be_shared(
    dashboard: Dashboard, two_jobs: tuple[int, int]
) -> None:
    page = dashboard.page
    for job_id in two_jobs:
        page.get_by_label(f"Compare job {job_id}").check()
    dashboard.button("Compare 2").click()
    assert page.url.endswith(f"/compare?jobs={two_jobs[0]},{two_jobs[1]}")
    page.go_back()
    expect(page.get_by_label(f"Compare job {two_jobs[0]}")).to_be_checked()
    dashboard.button("Compare 2").click()
    page.reload()
    expect(page.get_by_role("img", name="train_loss over 6 epochs")).to_be_visible()
    differing = page.locator("tr.differs")
    expect(differing).to_have_count(1)
    expect(differing).to_contain_text("0.001")
    expect(differing).to_contain_text("0.02")
    dashboard.button(f"Remove job {two_jobs[1]}").click()
    expect(page.get_by_role("columnheader")).to_have_count(1)


def test_a_job_that_is_not_there_does_not_keep_the_others_from_being_compared(
    dashboard: Dashboard, two_jobs: tuple[int, int]
) -> None:
    dashboard.go(f"/compare?jobs={two_jobs[0]},999999,{two_jobs[1]}")
    page = dashboard.page
    expect(page.get_by_text("There is no job 999999")).to_be_visible()
    expect(page.get_by_role("img", name="train_loss over 6 epochs")).to_be_visible()
    dashboard.button("Remove job 999999").click()
    expect(page.get_by_text("There is no job")).to_have_count(0)
    assert unquote(page.url).endswith(f"/compare?jobs={two_jobs[0]},{two_jobs[1]}")
    dashboard.go("/compare?jobs=" + ",".join(map(str, range(900_000, 900_010))))
    expect(page.get_by_text("these are the first of 10")).to_be_visible()


ODD_NAMES = """
import epochcast

run = epochcast.init()
for epoch in run.epochs():
    run.report(epoch=epoch, train_loss=1 / epoch, constructor=2.5)
"""


def test_a_metric_may_have_a_name_that_every_object_of_javascript_answers_to(
    dashboard: Dashboard, running: Platform, two_jobs: tuple[int, int], tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(ODD_NAMES)
    with epochcast.Client(running.url, running.token) as client:
        odd = client.submit(tmp_path / "train.py", total_epochs=2).job_id
    dashboard.go(f"/jobs/{odd}")
    dashboard.shows(2)
    charts = dashboard.page.get_by_role("region", name="Curves")
    expect(charts.get_by_role("img", name="constructor over 2 epochs")).to_be_visible()
    expect(charts).not_to_contain_text("NaN")
    dashboard.go(f"/compare?jobs={two_jobs[0]},{odd}")
    expect(dashboard.page.get_by_role("row", name=re.compile("last constructor .* 2.5"))).to_be_visible()


def test_compared_curves_of_a_job_with_quick_epochs_go_on(dashboard: Dashboard, client: httpx2.Client) -> None:
    job_id = submit(client, total_epochs=1_000_000)
    page = dashboard.page

    def late(route: Route) -> None:
        time.sleep(0.3)  # a gateway far away
        route.continue_()

    page.route("**/training-jobs/metrics*", late)
    dashboard.go(f"/compare?jobs={job_id}")
    for epochs in (r"[1-9]\d*", r"\d{2,}"):
        expect(page.get_by_role("img", name=re.compile(f"train_loss over {epochs} epochs"))).to_be_visible()
    client.post(f"/training-jobs/{job_id}/stop")
    page.unroute_all(behavior="ignoreErrors")


def test_the_form_shows_the_plan_submits_and_names_the_same_job_for_a_terminal(
    dashboard: Dashboard, running: Platform, client: httpx2.Client
) -> None:
    dashboard.go("/submit")
    page = dashboard.page
    page.get_by_label("Table classifier").check()
    page.get_by_label("hidden", exact=True).fill("-3")
    expect(page.locator(".field-error")).to_contain_text("greater than or equal to 1")
    page.get_by_label("hidden", exact=True).fill("16")
    page.get_by_label("dataset", exact=True).select_option("wine")
    page.get_by_label("Name", exact=True).fill("it's wine")
    page.get_by_label("Epochs", exact=True).fill("3")
    page.get_by_label("Tags", exact=True).fill("red white")
    expect(page.get_by_role("region", name="Plan")).to_contain_text("would start")
    command, python = page.get_by_label("In a terminal").inner_text(), page.get_by_label("In Python").inner_text()
    dashboard.button("Submit job").click()
    expect(page.get_by_test_id("progress")).to_have_text("100 %")
    job = client.get(f"/training-jobs/{page.url.rsplit('/', 1)[1]}").json()
    assert (job["name"], job["total_epochs"], job["spec"]["hyperparameters"]["dataset"]) == ("it's wine", 3, "wine")
    # Threads are decided by the first host.
    wanted = job["spec"] | {"threads": None}
    assert spec_of_command(command, running) == spec_of_python(python, running) == wanted


OWN = """
import os, sys
import epochcast

run = epochcast.init()
for epoch in run.epochs():
    run.report(epoch=epoch, train_loss=float(sys.argv[2]) / epoch)
print(os.environ["GREETING"], run.params)
"""


def test_a_script_of_ones_own_is_uploaded_submitted_and_run_again(
    dashboard: Dashboard, running: Platform, client: httpx2.Client, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "train.py").write_text(OWN)
    dashboard.go("/submit")
    page = dashboard.page
    page.get_by_label("A script of your own").check()
    expect(dashboard.button("Submit job")).to_be_disabled()
    page.get_by_label("Archive of its folder").set_input_files(folder / "train.py")
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("Archive of its folder").set_input_files(shutil.make_archive(str(folder), "zip", folder))
    page.get_by_label("Arguments", exact=True).fill("--scale 0.5")
    page.get_by_label("Environment", exact=True).fill("GREETING=it's morning")
    page.get_by_label("Hyperparameters", exact=True).fill("lr=0.1")
    page.get_by_label("Epochs", exact=True).fill("2")
    plan = page.get_by_role("region", name="Plan")
    expect(plan).to_contain_text("would start")
    assert violations(page) == []
    command, python = page.get_by_label("In a terminal").inner_text(), page.get_by_label("In Python").inner_text()
    dashboard.button("Submit job").click()
    expect(page.get_by_test_id("progress")).to_have_text("100 %")
    expect(page.get_by_role("log")).to_contain_text("it's morning {'lr': 0.1}")
    job = client.get(f"/training-jobs/{page.url.rsplit('/', 1)[1]}").json()
    wanted = job["spec"] | {"threads": None}
    assert (wanted["args"], wanted["env"]) == (["--scale", "0.5"], {"GREETING": "it's morning"})
    assert spec_of_command(command, running, folder) == spec_of_python(python, running, folder) == wanted
    page.get_by_role("link", name="Run again").click()
    expect(page.get_by_label("Arguments", exact=True)).to_have_value("--scale 0.5")
    expect(plan).to_contain_text("would start")
    expect(dashboard.button("Submit job")).to_be_enabled()


def spec_of_command(command: str, platform: Platform, folder: Path = CHECKOUT) -> object:
    program, submit, *words = shlex.split(command)
    assert (program, submit) == ("epochcast", "submit")
    server = ["--dry-run", "--json", "--url", platform.url, "--token", str(platform.token)]
    return json.loads(run([sys.executable, "-m", "epochcast.cli", submit, *server, *words], {}, folder))["spec"]


def spec_of_python(code: str, platform: Platform, folder: Path = CHECKOUT) -> object:
    """Run as it stands, against a server: `.submit(` becomes `.plan(`, so that it makes no job."""
    code = code.replace(".submit(", ".plan(") + "print(job.spec.model_dump_json())"
    where = {"EPOCHCAST_URL": platform.url, "EPOCHCAST_TOKEN": str(platform.token)}
    return json.loads(run([sys.executable, "-c", code], where, folder))


def run(command: list[str], environment: dict[str, str], folder: Path) -> str:
    home = {"PATH": "/usr/bin:/bin", **environment}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=home, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_shows_where_it_comes_from(
    dashboard: Dashboard, client: httpx2.Client, two_jobs: tuple[int, int], tmp_path: Path
) -> None:
    model = client.get(f"/training-jobs/{two_jobs[0]}").json()["model_id"]
    dashboard.go("/models")
    dashboard.page.get_by_role("link", name="slow").click()
    lineage = dashboard.page.get_by_role("region", name="Lineage")
    expect(lineage).to_contain_text(f"job {two_jobs[0]}")
    expect(lineage).to_contain_text("torch")
    path = dashboard.download(dashboard.button("Download", exact=False), tmp_path)
    assert path.name == f"slow-{model}.safetensors"


def test_older_models_are_read_once_however_often_one_clicks(dashboard: Dashboard) -> None:
    def answer(route: Route) -> None:
        number = 1 if "cursor=" in route.request.url else 2
        model = {"model_id": number, "job_id": 1, "name": f"m{number}", "owner": "alice", "metrics": {}, "lineage": {}}
        model |= {"bytes": 1, "sha256": "0", "created_at": "2025-01-07T10:15:00Z"}
        route.fulfill(json={"items": [model], "next_cursor": "more" if number == 2 else None})

    page = dashboard.page
    page.route("**/api/v1/models?*", answer)
    dashboard.go("/models")
    dashboard.button("Older models").dblclick()
    expect(page.get_by_role("link", name="m1")).to_be_visible()
    expect(page.get_by_role("row")).to_have_count(3)


PAGES = ("/", "/submit", "/fleet", "/models", "/compare", "/jobs/{job}", "/models/{model}", "/compare?jobs={job}")
NOT_THERE = ("/jobs/999999", "/models/999999", "/submit?like=999999", "/compare?jobs=999999")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(
    running: Platform, new_context: NewContext, client: httpx2.Client, two_jobs: tuple[int, int], scheme: str
) -> None:
    page = new_context(color_scheme=scheme).new_page()
    dashboard = Dashboard.open(page, running.url, running.token)
    model = client.get(f"/training-jobs/{two_jobs[0]}").json()["model_id"]
    for path in (*PAGES, *NOT_THERE):
        dashboard.go(path.format(job=two_jobs[0], model=model))
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert violations(page) == [], path
        for summary in page.locator("summary").all():
            if not summary.evaluate("summary => summary.parentElement.open"):
                summary.click()
        assert violations(page) == [], f"{path}, all of it unfolded"


def test_every_page_fits_a_phone(
    running: Platform, new_context: NewContext, client: httpx2.Client, two_jobs: tuple[int, int]
) -> None:
    page = new_context(viewport={"width": 360, "height": 740}, has_touch=True).new_page()
    dashboard = Dashboard.open(page, running.url, running.token)
    model = client.get(f"/training-jobs/{two_jobs[0]}").json()["model_id"]
    long = submit(client, name=200 * "W", total_epochs=1)
    finished(client, long)
    for path in (*PAGES, f"/jobs/{long}", f"/compare?jobs={long},{two_jobs[1]},{{job}}"):
        dashboard.go(path.format(job=two_jobs[0], model=model))
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path


def test_the_chosen_colours_outlast_a_reload(dashboard: Dashboard) -> None:
    page = dashboard.page
    for wanted in ("light", "dark"):
        page.get_by_role("button", name="Colours:").click()
        assert page.evaluate("document.documentElement.dataset.theme") == wanted
    page.reload()
    expect(page.get_by_role("button", name="Colours: dark")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"
