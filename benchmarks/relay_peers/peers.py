"""The relays that are compared: how each is started, and which are missing here and why."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
NODE_MODULES = HERE / "node_modules"
FIRST_JOB = 1
OURS, FLOOR = "ours", "floor"


@dataclass(frozen=True, slots=True)
class Peer:
    """`command(redis_port, jobs)` starts it. `share`: which part of the messages it gets, so that slow ones end too."""

    name: str
    text: str
    command: Callable[[int, int], list[str]]
    flavour: str = "plain"
    share: float = 1.0
    joins: bool = False
    """Whether it has a way of its own to join the frames of a burst; measured with it there."""
    is_clocked: bool = True
    """False: nothing is published, so there is no latency."""


class Missing(Exception):
    """Raised when a peer can't be measured here; says why."""


def build(folder: Path) -> None:
    """The load and the floor. Raises Missing without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Missing("the load is written in C, and there is no C compiler (cc) here")
    for name in ("load", "floor"):
        subprocess.run([compiler, "-O2", "-o", str(folder / name), str(HERE / f"{name}.c")], check=True)


def peers(folder: Path) -> list[Peer]:
    """All of them, whether they can run here or not; `check` tells. `folder`: where `build` has put its programs."""

    def floor(*more: str) -> Callable[[int, int], list[str]]:
        return lambda port, jobs: [str(folder / "floor"), str(port), str(FIRST_JOB), str(jobs), *more]

    return [
        Peer(OURS, "the whole gateway: tokens, limits, cursors, idle timer", lambda *_: [], "epochcast", joins=True),
        Peer(FLOOR, "a relay in C, one write() per delivery", floor(), joins=True),
        Peer("picows", "picows on uvloop, a thin hiredis reader", _python("picows_relay"), joins=True),
        Peer("ws", "Node: ws + ioredis", _node("ws_relay.js"), joins=True),
        Peer("broadcast", "websockets' broadcast on uvloop, the same thin reader", _python("websockets_relay")),
        Peer("socket.io", "Node: socket.io + Redis adapter", _node("socket_io_relay.js"), "socket.io", 0.5),
        Peer("queues", "FastAPI, one reader, queue and task per socket", _python("fastapi_relay", "queues"), share=0.5),
        Peer("usual", "FastAPI as usual, a subscription per socket", _python("fastapi_relay", "usual"), share=0.2),
        Peer("ceiling", "no relay: one process writes prebuilt frames", floor("ceiling"), "ceiling", is_clocked=False),
    ]  # fmt: skip


def check(peer: Peer, node_problem: str | None) -> None:
    """Raises Missing when the peer can't run here."""
    if peer.name == "picows" and find_spec("picows") is None:
        raise Missing("picows isn't installed; make bench installs it")
    if peer.name in ("ws", "socket.io") and node_problem is not None:
        raise Missing(node_problem)


def install_node_peers() -> str | None:
    """Puts the packages of package.json beside it; why that can't be, or None."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "there is no node with npm here"
    if not NODE_MODULES.exists():
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"]
        ran = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
        if ran.returncode != 0:
            shutil.rmtree(NODE_MODULES, ignore_errors=True)
            return f"npm could not install its packages: {ran.stderr.strip()[-200:]}"
    return None


def versions() -> dict[str, str]:
    """Of what isn't a Python package."""
    found = {}
    for name in ("node", "cc"):
        if shutil.which(name):
            said = subprocess.run([name, "--version"], capture_output=True, text=True).stdout.splitlines()
            found[name] = said[0].strip()
    return found


def environment(password: str, settings: dict[str, str], token: str) -> dict[str, str]:
    return {**os.environ, **settings, "REDIS_PASSWORD": password, "TOKEN": token, "NODE_ENV": "production"}


def _python(module: str, *more: str) -> Callable[[int, int], list[str]]:
    command = [sys.executable, "-m", f"benchmarks.relay_peers.{module}"]
    return lambda port, jobs: [*command, str(port), str(FIRST_JOB), str(jobs), *more]


def _node(script: str) -> Callable[[int, int], list[str]]:
    return lambda port, jobs: ["node", str(HERE / script), str(port), str(FIRST_JOB), str(jobs)]
