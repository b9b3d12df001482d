"""Fixtures for the browser tests: a Chromium, a platform, and pages that must not complain."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from shared.database import Database
from shared.settings import Settings
from tests.api.training import Training
from tests.conftest import missing, outlives_tests
from tests.dashboard.building import installed
from tests.dashboard.driving import BINARIES, PATIENCE_MS, Dashboard
from tests.platform import Platform

expect.set_options(timeout=PATIENCE_MS)


def find_binary() -> str:
    """Skips the test, or fails it, where there is no browser or nothing to show in it."""
    installed()
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    if binary is None:
        missing("chromium", f"no browser found; install one of {', '.join(BINARIES)}")
    return binary


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """This machine's Chromium, without a window; and a dashboard that was built."""
    binary = find_binary()
    with sync_playwright() as playwright:
        # Without the sandbox, which a container's root can't have: it shows only our own pages.
        chromium = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with tokens, as `epochcast up` starts it, with places for two jobs at once."""
    find_binary()
    with Platform(tmp_path_factory.mktemp("dashboard"), "--slots", "2") as platform:
        outlives_tests(platform)
        yield platform


NewContext = Callable[..., BrowserContext]


@pytest.fixture
def new_context(browser: Browser) -> Iterator[NewContext]:
    """Contexts (each like another visitor's browser) whose pages must log no error."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def watch(page: Page) -> None:
        page.on("pageerror", lambda error: complaints.append(f"{page.url}: {error}"))
        page.on("console", listen)

    def listen(message: ConsoleMessage) -> None:
        # What the network does is the tests' own doing: a refused call, a cut connection.
        if (
            message.type == "error"
            and "Failed to load resource" not in message.text
            and "WebSocket" not in message.text
        ):
            complaints.append(message.text)

    def new(**options: Any) -> BrowserContext:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(PATIENCE_MS)
        context.on("page", watch)
        contexts.append(context)
        return context

    yield new
    for context in contexts:
        context.close()
    assert complaints == []


NewTraining = Callable[..., Training]


@pytest.fixture
def new_training(sqlite_settings: Settings) -> Iterator[NewTraining]:
    """Jobs of a gateway without workers, already running: the test plays the worker."""
    database = Database(sqlite_settings.database_url.get_secret_value())
    trainings: list[Training] = []

    def new(**options: Any) -> Training:
        trainings.append(Training(database, sqlite_settings.events_redis_url, **options).start())
        return trainings[-1]

    yield new
    for training in trainings:
        training.close()
    database.close()


@pytest.fixture
def dashboard(running: Platform, new_context: NewContext) -> Dashboard:
    """The platform's dashboard, signed in, showing the jobs."""
    return Dashboard.open(new_context().new_page(), running.url, running.token)


@pytest.fixture
def client(running: Platform) -> Iterator[httpx2.Client]:
    """The platform's calls, as somebody beside the browser makes them."""
    headers = {"Authorization": f"Bearer {running.token}"}
    with httpx2.Client(base_url=f"{running.url}/api/v1", headers=headers, trust_env=False, timeout=30) as made:
        yield made
