"""Starts a relay and the load against it, and reads what both say and cost."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.relay_peers.peers import FIRST_JOB, OURS, Peer
from shared.embedded import free_port
from shared.processes import dies_with_parent, end

READY_S = 60.0
PAGE = os.sysconf("SC_PAGE_SIZE")
# As this process found them, before it left one to the servers.
CORES = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Site:
    """What all relays share: a folder with the built programs, Redis, and the gateway's settings and token."""

    folder: Path
    redis_port: int
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Shape:
    """How many jobs, and how many sockets follow each."""

    jobs: int
    subscribers: int

    @property
    def sockets(self) -> int:
        return self.jobs * self.subscribers

    def __str__(self) -> str:
        return f"{self.jobs:,} x {self.subscribers}"


@dataclass(frozen=True, slots=True)
class Run:
    """`cost_us`: the server's CPU per delivery."""

    cost_us: float
    per_second: float
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, said: Mapping[str, float]) -> "Run":
        delivered = said["delivered"]
        cost, speed = said["cpu_s"] / delivered * 1e6, delivered / said["wall_s"]
        return cls(cost, speed, said["p50_us"] / 1e3, said["p99_us"] / 1e3)


class Server:
    """A relay as a process."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self.port = port

    @property
    def cpu_s(self) -> float:
        """Of all its threads, in nanosecond steps (clock_getcpuclockid)."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    @property
    def memory_kib(self) -> float:
        """What it alone has in memory."""
        resident, shared = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1:3]
        return (int(resident) - int(shared)) * PAGE / 1024

    def cost_of_waiting(self, seconds: float) -> float:
        """Milliseconds of CPU per second while nothing is asked of it."""
        before = self.cpu_s
        time.sleep(seconds)
        return (self.cpu_s - before) / seconds * 1e3

    def settle(self, whole_s: float = 0.5) -> None:
        """Until it does little: sockets that were just opened may still be subscribing."""
        deadline = time.monotonic() + 20
        while self.cost_of_waiting(whole_s) > 60 and time.monotonic() < deadline:
            pass


@contextmanager
def serve(peer: Peer, site: Site, jobs: int, *, join: bool = False) -> Iterator[Server]:
    """The relay, listening. It has a core of its own where there are two."""
    log = site.folder / f"{peer.name}.log"
    port = free_port()
    command = peer.command(site.redis_port, jobs) + (["join"] if join else [])
    if peer.name == OURS:
        command = [sys.executable, "-m", "api", "--quiet"]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            env={**site.environment, "EPOCHCAST_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            preexec_fn=_on_cores(server_cores()),
        )
    try:
        assert process.stdout is not None
        if peer.name == OURS:
            _wait_for(port, process, log)
        else:
            words = process.stdout.readline().split()
            if not words:
                raise RuntimeError(f"{peer.name} did not start: {log.read_text()[-1000:]}")
            port = int(words[1])
        yield Server(process, port)
    finally:
        end(process, grace_s=15)
        if process.stdout is not None:
            process.stdout.close()


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the gateway did not start: {log.read_text()[-1000:]}")
        time.sleep(0.05)


class Load:
    """The sockets of one shape, open; each command publishes and says what it took."""

    def __init__(self, process: "subprocess.Popen[str]", shape: Shape) -> None:
        self._process = process
        self.shape = shape
        self.opened = self._answer()

    def closed(self, outstanding: int, deliveries: int) -> Run:
        """So many messages outstanding per job, about `deliveries` in all."""
        count = max(1, round(deliveries / self.shape.sockets / outstanding)) * outstanding
        return self._say(f"closed {outstanding} {count}")

    def rate(self, deliveries_per_second: float, seconds: float) -> Run:
        per_second = max(1, round(deliveries_per_second / self.shape.subscribers))
        return self._say(f"rate {per_second} {round(per_second * seconds)}")

    def _say(self, command: str) -> Run:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return Run.of(self._answer())

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load ended with code {self._process.wait()}")
        said: dict[str, float] = json.loads(line)
        return said


@contextmanager
def load(peer: Peer, site: Site, server: Server, shape: Shape, first_job: int = FIRST_JOB) -> Iterator[Load]:
    numbers = [server.port, server.process.pid, first_job, shape.jobs, shape.subscribers]
    process = subprocess.Popen(
        [str(site.folder / "load"), str(site.redis_port), peer.flavour, *map(str, numbers)],
        env=site.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_on_cores(load_cores()),
    )
    try:
        yield Load(process, shape)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def server_cores() -> set[int]:
    return {CORES[-1]}


def load_cores() -> set[int]:
    """All but the server's, where there are two: also Redis' and the publisher's."""
    return set(CORES[:-1] or CORES)


def _on_cores(cores: set[int]) -> Callable[[], None]:
    prepare = dies_with_parent()

    def start() -> None:
        prepare()
        os.sched_setaffinity(0, cores)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    return start
