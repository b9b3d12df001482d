"""The dashboard in a real Chromium: a list of a hundred jobs that report ten times a second each, and the first paint.

The messages go the whole way: event log, Redis, gateway, WebSocket. Beside the list stand, in turns in one run, the
same list while nothing happens, and an empty page that reads the same messages and shows nothing: what these two lose
is the machine's doing.
"""

import argparse
import gzip
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from api.page import STATIC
from benchmarks.harness.gateway import gateway
from benchmarks.harness.live_jobs import reporting
from benchmarks.harness.page_trace import BEGIN, CATEGORIES, END, FRAME_MS, RECORDER, Smoothness
from benchmarks.harness.result import Result, Table, goal, median, percentile, spread
from benchmarks.harness.submitting import forget_settings
from benchmarks.relay_peers.ours import prepare
from shared.embedded import RedisServer
from tests.dashboard.driving import BINARIES

SCREEN: ViewportSize = {"width": 1920, "height": 1080}
SETTLE_S = 2.0
FIRST_PAINT_MS = 1_000
SCRIPT_KB = 150
READ = """([address, token]) => {
  new WebSocket(address, ['Bearer', token]).onmessage = (event) => { window.last = JSON.parse(event.data); };
}"""
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
LOADED = """performance.getEntriesByType('resource').filter((one) => /[.]js$/.test(one.name))
  .reduce((sum, one) => sum + one.encodedBodySize, 0)"""


@dataclass(frozen=True, slots=True)
class Site:
    """What all measurements share."""

    browser: Browser
    url: str
    token: str
    redis_url: str


@dataclass
class Measured:
    runs: defaultdict[str, list[Smoothness]] = field(default_factory=lambda: defaultdict(list))
    painted_ms: list[float] = field(default_factory=list)
    listed_ms: list[float] = field(default_factory=list)
    """Until the first row of the list is there."""
    loaded_bytes: int = 0
    browser: str = ""
    reported_per_s: list[float] = field(default_factory=list)


def open_list(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/#token={site.token}")
    page.wait_for_selector("tr[data-job]")


def open_empty(site: Site, page: Page) -> None:
    """A page of the gateway's own origin, which is all that its check of origins asks for."""
    page.goto(f"{site.url}/healthz")
    page.evaluate(READ, [f"{site.url.replace('http', 'ws')}/api/v1/training-jobs/ws", site.token])


# How each page is opened, and whether the jobs report meanwhile.
PAGES: dict[str, tuple[str, Callable[[Site, Page], None], bool]] = {
    "live": ("the list, every job reports", open_list, True),
    "empty": ("an empty page that reads the same messages", open_empty, True),
    "still": ("the list, no job reports", open_list, False),
}


def measure(options: argparse.Namespace) -> Measured:
    found = Measured()
    with site(options.jobs) as place:
        found.browser = place.browser.version
        for _ in range(options.loads):
            first_paint(place, found)
        for _ in range(options.rounds):
            for name, (_, open_page, is_live) in PAGES.items():
                found.runs[name].append(watch(place, options, found, open_page, is_live=is_live))
    return found


@contextmanager
def site(jobs: int) -> Iterator[Site]:
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    if binary is None or not (STATIC / "index.html").exists():
        raise SystemExit(f"needs a browser ({', '.join(BINARIES)}) and the dashboard, which make setup builds")
    forget_settings()
    with (
        tempfile.TemporaryDirectory(prefix="epochcast-bench-") as name,
        RedisServer(Path(name) / "redis") as redis_server,
    ):
        settings, token = prepare(Path(name), redis_server, jobs)
        with gateway(settings, Path(name)) as url, sync_playwright() as playwright:
            # Without the sandbox, which a container's root can't have: it shows only our own pages.
            arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
            browser = playwright.chromium.launch(executable_path=binary, args=arguments)
            yield Site(browser, url, token, redis_server.url)
            browser.close()


@contextmanager
def visitor(place: Site) -> Iterator[Page]:
    """A page of a browser that has never been here: nothing is in its cache."""
    context = place.browser.new_context(viewport=SCREEN)
    context.add_init_script(RECORDER)
    try:
        yield context.new_page()
    finally:
        context.close()


def first_paint(place: Site, found: Measured) -> None:
    with visitor(place) as page:
        began = time.monotonic()
        open_list(place, page)
        found.listed_ms.append((time.monotonic() - began) * 1000)
        found.painted_ms.append(float(page.evaluate(PAINTED)))
        found.loaded_bytes = int(page.evaluate(LOADED))


def watch(
    place: Site, options: argparse.Namespace, found: Measured, open_page: Callable[[Site, Page], None], *, is_live: bool
) -> Smoothness:
    per_second = options.jobs * options.per_job
    with visitor(place) as page:
        open_page(place, page)
        with reporting(place.redis_url, options.jobs, per_second) if is_live else nullcontext() as reports:
            page.wait_for_timeout(SETTLE_S * 1000)
            place.browser.start_tracing(page=page, categories=CATEGORIES)
            page.evaluate(BEGIN)
            page.wait_for_timeout(options.seconds * 1000)
            frames, messages = page.evaluate(END)
            trace = place.browser.stop_tracing()
        if reports is not None:
            found.reported_per_s.append(reports.per_s)
    return Smoothness.of(trace, frames, messages)


def result_of(found: Measured, options: argparse.Namespace) -> Result:
    rows = [(text, *_cells(found.runs[name])) for name, (text, _, _) in PAGES.items()]
    columns = (
        "page", "messages/s", "frames late", "by its own work at most", "Chromium's verdict: dropped",
        "between frames, ms: median, p99", "work per frame, ms of CPU: median, p99", "main thread busy", "its CPU",
        "tasks > 50 ms, by CPU time",
    )  # fmt: skip
    scripts_kb = sum(len(gzip.compress(path.read_bytes())) for path in (STATIC / "assets").glob("*.js")) / 1000
    by_page = sum(run.by_page for run in found.runs["live"])
    painted = median(found.painted_ms)
    facts = [
        ("frames late by the page's own work, of all rounds", str(by_page), goal(0, by_page, "")),
        ("first contentful paint, nothing cached, ms", spread(found.painted_ms), goal(FIRST_PAINT_MS, painted, " ms")),
        ("the list's first row, ms", spread(found.listed_ms), ""),
        ("JavaScript of all pages, gzipped, kB", f"{scripts_kb:.1f}", goal(SCRIPT_KB, scripts_kb, " kB")),
        ("what the list loads of it, kB", f"{found.loaded_bytes / 1000:.1f}", ""),
    ]  # fmt: skip
    figures = {
        f"{name}_{figure}": round(value, 4)
        for name, runs in found.runs.items()
        for figure, value in _figures(runs).items()
    }
    figures |= {
        "first_paint_ms": round(painted, 1),
        "scripts_kb": round(scripts_kb, 1),
        "reported_per_s": round(median(found.reported_per_s), 1),
    }
    return Result(
        "dashboard",
        "The dashboard in a browser",
        f"The list of {options.jobs} running jobs that report {options.per_job:g} times a second each, in headless "
        f"Chromium {found.browser} on a screen of {SCREEN['width']} x {SCREEN['height']}. {options.rounds} rounds of "
        f"{options.seconds:g} s, in turns: sums, or medians with the lowest and the highest.",
        [Table(columns, rows), Table(("what", "figure", "goal"), facts)],
        figures,
        [
            f"A frame is due every {FRAME_MS:.1f} ms, because the page asks for each (requestAnimationFrame); late is "
            "one at which its main thread had none. By its own work: the CPU time of its tasks since the frame before "
            "would have filled so many frames. What is late otherwise waited for a core: browser, gateway, Redis and "
            "the process that reports share them.",
            f"That process sent {median(found.reported_per_s):,.0f} messages a second (median of the rounds), each by "
            "the event log's own call.",
            "Chromium's verdict is that of its PipelineReporter: dropped, and affecting smoothness; also where the "
            "compositor alone was late.",
            "Busy: the main thread's tasks by the clock, waiting for a core included, with the cost of being traced. "
            "There is no GPU: the CPU paints.",
        ],
    )


def _cells(runs: Sequence[Smoothness]) -> Iterator[str]:
    yield spread([run.messages_per_s for run in runs])
    yield f"{sum(run.late for run in runs)} of {sum(run.due for run in runs):,}"
    yield str(sum(run.by_page for run in runs))
    yield f"{sum(run.dropped for run in runs)} of {sum(run.judged for run in runs):,}"
    intervals = [interval for run in runs for interval in run.intervals_ms]
    yield f"{median(intervals):.1f}, {percentile(intervals, 99):.1f}"
    work = [one for run in runs for one in run.work_ms]
    yield f"{median(work):.1f}, {percentile(work, 99):.1f}"
    yield spread([100 * run.busy for run in runs]) + " %"
    yield spread([100 * run.cpu for run in runs]) + " %"
    yield f"{sum(run.long_tasks for run in runs)}, {sum(run.long_work for run in runs)}"


def _figures(runs: Sequence[Smoothness]) -> dict[str, float]:
    intervals = [interval for run in runs for interval in run.intervals_ms]
    return {
        "late_share": sum(run.late for run in runs) / sum(run.due for run in runs),
        "late_by_page": sum(run.by_page for run in runs),
        "interval_p99_ms": percentile(intervals, 99),
        "work_p99_ms": percentile([one for run in runs for one in run.work_ms], 99),
        "busy": median([run.busy for run in runs]),
        "cpu": median([run.cpu for run in runs]),
        "long_tasks": sum(run.long_tasks for run in runs),
        "messages_per_s": median([run.messages_per_s for run in runs]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--per-job", type=float, default=10.0, help="messages of each job a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round and page")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loads", type=int, default=7, help="of the page with nothing cached")
    options = parser.parse_args()
    result_of(measure(options), options).show()


if __name__ == "__main__":
    main()
