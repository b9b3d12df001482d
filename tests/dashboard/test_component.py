"""The document's React component, unmodified, and its rewrite on the hook: each in Chromium over a whole job."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.building import SOURCE, installed, node
from tests.dashboard.conftest import NewContext
from tests.e2e.document import pointed_at, snippet
from tests.e2e.test_document import held, submit
from tests.platform import CHECKOUT, Platform

pytestmark = pytest.mark.chromium

# What the page does around the component: shows it, and notes every status that it shows.
MOUNT = """
import { createRoot } from 'react-dom/client';
window.seen = [];
const root = document.getElementById('root');
new MutationObserver(() => {
  const text = root.querySelector('p')?.textContent;
  if (text && text !== window.seen.at(-1)) window.seen.push(text);
}).observe(root, { childList: true, subtree: true, characterData: true });
"""
RENDER = "createRoot(root).render(<TrainingMonitor jobId={JOB} />);\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Below the dashboard, where its packages are found."""
    installed()
    with TemporaryDirectory(dir=SOURCE / "node_modules", prefix=".component-") as name:
        yield Path(name)


def bundled(folder: Path, code: str) -> str:
    """The code as one script, built with the dashboard's own tools."""
    (folder / "entry.jsx").write_text(code)
    options = ["--config", str(SOURCE / "vite.config.ts"), "--outDir", str(folder / "out"), "--logLevel", "warn"]
    (folder / "index.html").write_text("<!doctype html><script type='module' src='/entry.jsx'></script>")
    vite = SOURCE / "node_modules" / "vite" / "bin" / "vite.js"
    node(vite, "build", folder, *options)
    (script,) = (folder / "out" / "assets").glob("*.js")
    return script.read_text()


def show(page: Page, platform: Platform, script: str) -> None:
    """A page from the gateway itself, as its check of origins wants it, that holds nothing but the component."""
    page.goto(f"{platform.url}/healthz")
    page.evaluate("document.body.innerHTML = '<div id=root></div>'")
    page.add_script_tag(content=script, type="module")


def whole_job(platform: Platform, page: Page, folder: Path, code: str) -> list[str]:
    """Submits a job, shows `code` with its id for JOB, and follows it to the end; the statuses that it showed."""
    with held(platform) as begin:
        job_id = submit(platform)
        show(page, platform, bundled(folder, code.replace("JOB", str(job_id))))
        begin()
        expect(page.get_by_text("100%")).to_be_visible()
    return list(page.evaluate("window.seen"))


def test_the_documents_component_follows_a_whole_job(platform: Platform, new_context: NewContext, folder: Path) -> None:
    component = pointed_at(snippet("React Component", "javascript"), platform.url, 42)
    code = f"{component}\n{MOUNT}\n{RENDER}"
    page = new_context().new_page()
    seen = whole_job(platform, page, folder, code)
    assert "Status: running" in seen
    assert "Status: error" not in seen
    # As the document writes it: the close after the end replaces what the end said.
    expect(page.get_by_text("Status: disconnected")).to_be_visible()
    assert "Status: completed" in page.evaluate("window.seen")


def test_the_component_on_the_hook_stays_completed_when_the_socket_closes(
    platform: Platform, new_context: NewContext, folder: Path
) -> None:
    example = CHECKOUT / "examples" / "react" / "TrainingMonitor.tsx"
    code = f"import {{ TrainingMonitor }} from '{example}';\n{MOUNT}\n{RENDER}"
    page = new_context().new_page()
    closed: list[bool] = []
    page.on("websocket", lambda socket: socket.on("close", lambda _: closed.append(True)))
    seen = whole_job(platform, page, folder, code)
    assert "Status: running" in seen
    page.wait_for_function("window.seen.at(-1) === 'Status: completed'")
    while not closed:
        page.wait_for_timeout(50)
    # Longer than the first try to come back would take, had it been made.
    page.wait_for_timeout(1000)
    assert len(closed) == 1
    assert page.evaluate("window.seen").index("Status: completed") == len(page.evaluate("window.seen")) - 1
