"""The processes of a platform on one machine, from start to stop: its own Redis, gateway and worker."""

import asyncio
import contextlib
import getpass
import os
import time
from collections.abc import Coroutine
from typing import Any

import httpx2
import psutil
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from shared import database, tokens
from shared.data_folder import DataFolder, StateFiles
from shared.database import Database, DatabaseUnavailable
from shared.embedded import RedisServer, RedisUnavailable
from shared.fleet import Fleet
from shared.service import Backoff, Service, Terminal
from shared.settings import Settings

READY_S = 120.0
GATEWAY_GRACE_S = 15.0
# On top of EPOCHCAST_STOP_GRACE_S and EPOCHCAST_KILL_S: the last checkpoint's copy and the final event.
WORKER_EXTRA_S = 20.0
TOKEN_DAYS = 30
_TOKEN_RENEWAL_S = 15 * 86_400
# One key press can arrive twice: from the terminal, and passed on by the command line.
_SAME_SIGNAL_S = 0.5


class StartFailed(Exception):
    """Raised when the platform can't start; the message is the one line that the user gets."""


class Stack:
    """Started once, stopped once. `stop_asked` and `hurry` are what signals set."""

    def __init__(self, folder: DataFolder, settings: Settings, state_files: StateFiles, terminal: Terminal) -> None:
        self.folder = folder
        self.settings = settings
        self.url = f"http://{_address_name(settings.bind)}:{settings.port}"
        self._state_files = state_files
        self._terminal = terminal
        self._redis = RedisServer(folder.redis, persistent=True)
        self._gateway = Service("gateway", "api", terminal, "--quiet")
        self._worker = Service("worker", "worker", terminal)
        self._token_made = 0.0
        self.stop_asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self._asked_at = 0.0

    def ask_to_stop(self) -> None:
        """The first signal stops in order, a second one hurries."""
        now = time.monotonic()
        if not self.stop_asked.is_set():
            self._terminal.say("stopping: worker, gateway, Redis (again: at once)")
            self._asked_at = now
            self.stop_asked.set()
        elif now - self._asked_at > _SAME_SIGNAL_S:
            self.hurry.set()

    async def start(self) -> None:
        """Returns when the gateway is ready and the worker registered. Raises StartFailed."""
        started_at = time.time()
        try:
            self._redis.start()
            await asyncio.to_thread(database.upgrade, self.folder.database_url)
        except RedisUnavailable as error:
            raise StartFailed(str(error)) from error
        except (DatabaseUnavailable, SQLAlchemyError, CommandError) as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise StartFailed(
                f"the database {self.folder.path / 'epochcast.db'} can't be used ({reason}); "
                "bring back a copy of it, or choose another --data-dir"
            ) from error
        environment = self._environment()
        await asyncio.gather(self._gateway.start(environment), self._worker.start(environment))
        await asyncio.gather(
            self._unless_dead(self._gateway, self._gateway_ready()),
            self._unless_dead(self._worker, self._worker_registered(started_at)),
        )

    def announce(self) -> None:
        """The state files, then the ready line and the page's address."""
        token = self._write_state()
        self._terminal.say("epochcast is ready; Ctrl-C stops it")
        self._terminal.say(f"{self.url}/#token={token}" if token else f"{self.url}/")

    async def run(self) -> None:
        """Keeps everything running; never returns by itself."""
        async with asyncio.TaskGroup() as keepers:
            for keeper in (self._gateway.keep_running(), self._worker.keep_running(), self._keep_redis()):
                keepers.create_task(keeper)
            keepers.create_task(self._keep_house())

    async def unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Does `work`; False when a stop was asked before its end, and it was cancelled."""
        task, asked = asyncio.create_task(work), asyncio.create_task(self.stop_asked.wait())
        try:
            await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            return not asked.done()
        finally:
            task.cancel()
            asked.cancel()
            await asyncio.gather(task, asked, return_exceptions=True)

    async def stop(self) -> None:
        """Worker first (its trainers checkpoint, its last events need Redis), then gateway, then Redis."""
        self._state_files.remove_own(os.getpid())
        await self._worker.stop(self.settings.stop_grace_s + self.settings.kill_s + WORKER_EXTRA_S, self.hurry)
        await self._gateway.stop(GATEWAY_GRACE_S, self.hurry)
        await asyncio.to_thread(self._redis.stop, 0.0 if self.hurry.is_set() else 10.0)
        _end_orphans()

    def _environment(self) -> dict[str, str]:
        """What the children get over the caller's environment: our own servers, whatever EPOCHCAST_*_URL says."""
        secret = self.settings.secret
        return {
            "EPOCHCAST_DATABASE_URL": self.folder.database_url,
            "EPOCHCAST_BROKER_URL": self._redis.url,
            "EPOCHCAST_EVENTS_URL": self._redis.url,
            "EPOCHCAST_ARTIFACTS_URL": self.folder.artifacts_url,
            "EPOCHCAST_WORK_DIR": str(self.folder.work_dir),
            "EPOCHCAST_SECRET": secret.get_secret_value() if secret else "",
            "EPOCHCAST_AUTH": self.settings.auth,
            "EPOCHCAST_PORT": str(self.settings.port),
            # Empty counts as unset: the worker then decides.
            "EPOCHCAST_SLOTS": "" if self.settings.slots is None else str(self.settings.slots),
        }

    async def _unless_dead(self, service: Service, ready: Coroutine[Any, Any, None]) -> None:
        waiting, death = asyncio.create_task(ready), asyncio.create_task(service.ended())
        try:
            await asyncio.wait({waiting, death}, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            how = f"ended ({death.result()})" if death.done() else f"was silent for {READY_S:g} s"
            raise StartFailed(f"the {service.name} {how} before it was ready; its last lines above say why")
        finally:
            for task in (waiting, death):
                task.cancel()

    async def _gateway_ready(self) -> None:
        bind = "127.0.0.1" if self.settings.bind in ("0.0.0.0", "localhost") else self.settings.bind
        host = f"[{bind}]" if ":" in bind else bind
        # Own addresses only: a proxy in the environment knows nothing of them.
        async with httpx2.AsyncClient(trust_env=False, timeout=5) as client:
            while True:
                with contextlib.suppress(httpx2.HTTPError):
                    if (await client.get(f"http://{host}:{self.settings.port}/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.1)

    async def _worker_registered(self, since: float) -> None:
        record = Database(self.folder.database_url, connections=1)
        try:
            while True:
                with contextlib.suppress(DatabaseUnavailable):
                    for host in await asyncio.to_thread(Fleet(record).hosts):
                        # An earlier run's row may still look alive; times are shown in whole seconds.
                        if host["name"] == self.settings.host_name and host["registered_at"].timestamp() >= int(since):
                            return
                await asyncio.sleep(0.1)
        finally:
            record.close()

    def _write_state(self) -> str | None:
        token = None
        if self.settings.auth == "token" and self.settings.secret is not None:
            secret = self.settings.secret.get_secret_value()
            token = tokens.create(_user(), tokens.SCOPES, days=TOKEN_DAYS, secret=secret)
        self._token_made = time.time()
        self._state_files.write({"url": self.url, "token": token, "pid": os.getpid()})
        return token

    async def _keep_redis(self) -> None:
        backoff = Backoff()
        while True:
            await asyncio.sleep(0.5)
            if self._redis.is_running:
                continue
            pause_s = backoff.pause_s()
            self._terminal.say(f"Redis ended unexpectedly; it starts again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            try:
                self._redis.start()
                backoff.started()
            except RedisUnavailable as error:
                self._terminal.say(str(error))

    async def _keep_house(self) -> None:
        """Collects adopted processes that have ended, and renews the state files' token in time."""
        seen: set[int] = set()
        while True:
            await asyncio.sleep(5)
            seen = _collect_zombies(seen)
            if time.time() - self._token_made > _TOKEN_RENEWAL_S or self._state_files.is_missing:
                self._write_state()


def _collect_zombies(seen: set[int]) -> set[int]:
    """Collects what was a zombie at the last call too: our own services' are collected at once by asyncio."""
    zombies = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                zombies.add(child.pid)
    for pid in zombies & seen:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return zombies - seen


def _end_orphans() -> None:
    """Kills what is left of our descendants: `up` adopts orphans, so nothing can hide from it."""
    deadline = time.monotonic() + 10
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(left, timeout=1)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in a container
        return "local"


def _address_name(bind: str) -> str:
    return "localhost" if bind in ("127.0.0.1", "::1", "0.0.0.0", "::", "localhost") else bind
