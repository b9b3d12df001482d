"""The dashboard's source, packages and build, as tests find them."""

import subprocess
import sys
from pathlib import Path

from api.page import STATIC
from tests.conftest import missing
from tests.platform import CHECKOUT

SOURCE = CHECKOUT / "dashboard"
NODE = Path(sys.executable).parent / "node"


def installed() -> None:
    """Skips the test (fails it, where browser tests are required) without the npm packages and a build."""
    if not (SOURCE / "node_modules" / "vite").exists() or not (STATIC / "index.html").exists():
        missing("chromium", "the dashboard is not built, because npm could not be reached: make setup")


def node(*arguments: str | Path) -> str:
    """Runs Node in the dashboard's folder, which must succeed; returns what it printed."""
    command = [str(word) for word in (NODE, *arguments)]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
