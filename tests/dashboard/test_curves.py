"""The curves of a job: by epoch and by step, zoomed, on a log scale, and whole however long a page stays open."""

from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Locator, expect

from shared.attempt import MetricPoint
from shared.settings import Settings
from tests.api.rest.served import Served
from tests.dashboard.conftest import NewContext, NewTraining
from tests.dashboard.driving import Dashboard, finished, submit, submit_script, violations
from tests.platform import Platform
from tests.waiting import wait_until

pytestmark = pytest.mark.chromium


BY_STEP = """
import epochcast

run = epochcast.init()
for epoch in run.epochs():
    for step in range(10, 60, 10):
        run.report(epoch=epoch, step=step, batch_loss=1 / (epoch * step), lr=0.01)
    run.report(epoch=epoch, train_loss=1 / epoch)
"""


def test_what_is_reported_by_step_has_charts_beside_those_by_epoch(
    dashboard: Dashboard, running: Platform, tmp_path: Path
) -> None:
    dashboard.go(f"/jobs/{submit_script(running, tmp_path, BY_STEP, total_epochs=3)}")
    page = dashboard.page
    dashboard.shows(3)
    dashboard.shows(15, "step")
    by_step = page.get_by_role("region", name="By step")
    expect(by_step.get_by_role("img", name="batch_loss over 15 steps")).to_be_visible()
    # Each epoch's steps begin at 10 again, and are put one behind the other.
    expect(by_step.locator(".legend-at").first).to_have_text("step 150")
    table = dashboard.download(by_step.get_by_role("button", name="Download CSV"), tmp_path)
    assert table.read_text().splitlines()[0] == "step,batch_loss,lr"
    assert violations(page) == []


def test_a_page_that_stays_open_keeps_its_size_and_no_epoch_is_missing_from_the_curve(
    sqlite_settings: Settings, new_context: NewContext, new_training: NewTraining, tmp_path: Path
) -> None:
    training = new_training(epochs=8000)
    with Served(sqlite_settings) as served:
        dashboard = Dashboard.open(new_context().new_page(), served.url, served.token())
        dashboard.go(f"/jobs/{training.job_id}")
        page = dashboard.page
        expect(page.locator("main [data-phase='live']")).to_be_visible()
        for _ in range(16):
            training.report(500)
            first = training.epoch - 499
            points = [MetricPoint(epoch, None, {"train_loss": 0.5}, 0.0) for epoch in range(first, first + 500)]
            training.record.record(None, points, None)
            expect(page.get_by_text(f"epoch {training.epoch} of 8000")).to_be_visible()

        def epochs() -> list[int]:
            table = dashboard.download(dashboard.button("Download CSV"), tmp_path)
            return [int(line.partition(",")[0]) for line in table.read_text().splitlines()[1:]]

        # The record is asked for fewer points than it has by then: some lie a few epochs apart, but not thousands.
        wait_until(lambda: largest_step(epochs()) < 20, "a curve without a hole", timeout_s=30)
        found = epochs()
        assert (found[0], found[-1]) == (1, 8000)
        assert len(found) < 8000


def largest_step(numbers: list[int]) -> int:
    return max(after - before for before, after in pairwise(numbers))


def test_curves_can_be_zoomed_without_a_mouse(dashboard: Dashboard, client: httpx2.Client) -> None:
    job_id = submit(client, total_epochs=6)
    finished(client, job_id)
    dashboard.go(f"/jobs/{job_id}")
    dashboard.shows(6)
    page = dashboard.page
    curves = page.get_by_role("region", name="Curves")
    chart = curves.get_by_role("img").first
    whole = chart.screenshot()
    plain = border(page.get_by_label("Search the log"))
    assert border(curves.get_by_label("To epoch")) == plain
    curves.get_by_label("From epoch").focus()
    page.keyboard.type("3")
    page.keyboard.press("Tab")
    page.keyboard.type("2")
    expect(curves.get_by_label("To epoch")).to_have_attribute("aria-invalid", "true")
    assert border(curves.get_by_label("To epoch")) != plain
    page.keyboard.press("Backspace")
    page.keyboard.type("5")
    expect(curves.get_by_label("To epoch")).to_have_attribute("aria-invalid", "false")
    zoomed = chart.screenshot()
    assert zoomed != whole
    curves.get_by_role("button", name="Reset zoom").press("Enter")
    expect(curves.get_by_role("group", name="Which epochs")).to_be_focused()
    expect(curves.get_by_label("From epoch")).to_have_value("")
    expect(curves.get_by_label("To epoch")).to_have_value("")
    wait_until(lambda: chart.screenshot() == whole, "the whole curve again", timeout_s=20)


def border(field: Locator) -> str:
    return str(field.evaluate("field => getComputedStyle(field).borderColor"))


BELOW_ZERO = """
import epochcast

run = epochcast.init()
for epoch in run.epochs():
    run.report(epoch=epoch, train_loss=1 / epoch, log_likelihood=-1 / epoch)
"""


def test_a_log_scale_without_anything_above_zero_says_so(
    dashboard: Dashboard, running: Platform, tmp_path: Path
) -> None:
    dashboard.go(f"/jobs/{submit_script(running, tmp_path, BELOW_ZERO, total_epochs=3)}")
    dashboard.shows(3)
    note = dashboard.page.get_by_text("Nothing here is above 0")
    expect(note).to_have_count(0)
    dashboard.page.get_by_label("Log scale").check()
    expect(dashboard.page.locator("figure", has=note)).to_have_count(1)
    expect(dashboard.page.locator("figure", has=note)).to_contain_text("log_likelihood")
