"""The dashboard as a test drives it: where to go, what to wait for, what to look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Locator, Page, expect

import epochcast
from tests.dashboard.building import SOURCE
from tests.platform import Platform
from tests.waiting import wait_until

AXE = SOURCE / "node_modules" / "axe-core" / "axe.min.js"
BINARIES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Two cores that are busy with something else.
PATIENCE_MS = 60_000
SMALL = {"recipe": "image-classifier", "hyperparameters": {"model": "mlp", "width": 8}}


@dataclass
class Dashboard:
    """One page of a browser that shows the dashboard at `url`."""

    page: Page
    url: str

    @classmethod
    def open(cls, page: Page, url: str, token: str | None) -> "Dashboard":
        page.goto(f"{url}/#token={token}" if token else f"{url}/")
        expect(page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()
        return cls(page, url)

    def go(self, path: str) -> None:
        self.page.goto(self.url + path)

    def row(self, job_id: int) -> Locator:
        return self.page.locator(f"tr[data-job='{job_id}']")

    def button(self, name: str, *, exact: bool = True) -> Locator:
        return self.page.get_by_role("button", name=name, exact=exact)

    def shows(self, count: int, unit: str = "epoch") -> None:
        """So many epochs, or steps, in its curves."""
        expect(self.page.locator(f".charts[data-unit='{unit}']")).to_have_attribute("data-count", str(count))

    def download(self, button: Locator, folder: Path) -> Path:
        with self.page.expect_download() as started:
            button.click()
        path = folder / started.value.suggested_filename
        started.value.save_as(path)
        return path


def submit(client: httpx2.Client, **fields: Any) -> int:
    answer = client.post("/training-jobs", json=SMALL | {"total_epochs": 6} | fields)
    assert answer.status_code == 201, answer.text
    return int(answer.json()["job_id"])


def submit_script(platform: Platform, folder: Path, script: str, total_epochs: int) -> int:
    (folder / "train.py").write_text(script)
    with epochcast.Client(platform.url, platform.token) as client:
        return client.submit(folder / "train.py", total_epochs=total_epochs).job_id


def status_of(client: httpx2.Client, job_id: int) -> str:
    return str(client.get(f"/training-jobs/{job_id}").json()["status"])


def finished(client: httpx2.Client, *job_ids: int) -> None:
    def all_ended() -> bool:
        return all(status_of(client, job_id) in ("succeeded", "failed", "stopped") for job_id in job_ids)

    wait_until(all_ended, f"the end of the jobs {job_ids}", timeout_s=120, every_s=0.2)


def violations(page: Page) -> list[str]:
    """What axe has to say about the page, every rule of WCAG 2.2 AA and its good practices."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("async () => (await axe.run(document)).violations")
    return [f"{one['id']}: {one['help']}: {[node['html'][:150] for node in one['nodes'][:3]]}" for one in found]
