"""The agent: one process per host that registers it, beats its heart, dispatches, and guards its process trees."""

import argparse
import os
import platform
import signal
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import psutil
import redis
import structlog

from shared import logs
from shared.artifacts import ArtifactStore, ArtifactsUnavailable
from shared.celery_app import Poker
from shared.database import Database, DatabaseUnavailable
from shared.dispatcher import Dispatcher
from shared.errors import HostNameTaken
from shared.event_log import EventLog, nudge_channel
from shared.fleet import Fleet, GpuState, HostState
from shared.processes import adopt_orphans, hide_memory
from shared.recovery import Recovery
from shared.settings import Settings, from_environment
from worker import gpus
from worker.guard import Guard
from worker.predecessor import release_predecessors
from worker.process_tree import boot_id, is_alive, pid_namespace, start_time
from worker.slots import slots_of, threads_per_job
from worker.starting import Starter
from worker.warm_start import ForkServerKeeper
from worker.workspace import template_environment

logger = structlog.get_logger(__name__)

NAME_TAKEN = 3
HEARTBEAT_S = 5.0
# While gateways dispatch, an agent looks this often whether they still do.
DISPATCHER_RESTS_S = 5.0
# Supervisors look for a new agent twice a second.
ADOPT_S = 3.0


class Agent:
    """Owns the host's row. Ends when the host's name is taken over, and when its worker (parent) dies."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = Database(settings.database_url.get_secret_value())
        self._fleet = Fleet(self._database)
        # The worker process, not this one: a re-exec'd agent is the same instance of the host.
        worker = os.getppid()
        self._instance = f"{worker}:{start_time(worker) or 0}"
        self._events = redis.Redis.from_url(settings.events_redis_url, socket_timeout=5, socket_connect_timeout=3)
        event_log = EventLog(self._events, kept_per_job=settings.events_kept_per_job, kept_s=settings.events_kept_s)
        poker = Poker(settings.broker_url.get_secret_value())
        self._dispatcher = Dispatcher(settings, self._database, event_log, poker, rest_s=DISPATCHER_RESTS_S)
        self._starter = Starter(ForkServerKeeper(template_environment(threads_per_job(settings))))
        self._guard = Guard(settings.work_dir, self._starter)
        self._ending = threading.Event()
        self._reads_store = True
        psutil.cpu_percent()  # the first call only starts the measurement

    def run(self, *, first: bool, warm: bool, ready_fd: int | None) -> int:
        """`first`: the worker's first agent, which takes over what its predecessor left; later ones only go on. `warm`:
        has the fork server ready before a job asks for it."""
        signal.signal(signal.SIGTERM, lambda *_: self._ending.set())
        if warm:
            self._starter.preload()
        try:
            self._enter(first)
        except HostNameTaken as error:
            print(f"epochcast worker: {error}", file=sys.stderr)
            return NAME_TAKEN
        if ready_fd is not None:
            os.write(ready_fd, b"ready")
            os.close(ready_fd)
        threads = [
            threading.Thread(target=self._beat, name="heartbeat", daemon=True),
            threading.Thread(target=self._listen, name="nudges", daemon=True),
        ]
        for thread in threads:
            thread.start()
        self._dispatcher.start()
        while not self._ending.is_set():
            self._guard.run_once()
        self._leave()
        return 0

    def run_draining(self) -> int:
        """In place of an agent that died: only to tell the supervisors, who come to it, that the worker shuts down."""
        self._leave(ADOPT_S)
        return 0

    def _enter(self, first: bool) -> None:
        """Registers; waits for as long as SQL is away, because without it there is nothing to do."""
        self._reads_store = self._probe_store()
        while not self._ending.is_set():
            try:
                self._fleet.register(self.state(), self._settings.lease_s, _instance_is_alive)
                if first:
                    release_predecessors(self._database, self._settings.host_name, self._settings.work_dir)
                return
            except DatabaseUnavailable as error:
                logger.warning("agent waits for SQL", error=str(error))
                self._ending.wait(1.0)

    def state(self) -> HostState:
        """This host now."""
        memory = psutil.virtual_memory()
        return HostState(
            name=self._settings.host_name,
            instance=self._instance,
            boot_id=boot_id(),
            pid_namespace=pid_namespace(),
            slots=slots_of(self._settings),
            cpus=len(os.sched_getaffinity(0)),
            memory_total_bytes=memory.total,
            memory_used_bytes=memory.total - memory.available,
            cpu_percent=psutil.cpu_percent(),
            reads_store=self._reads_store,
            versions=_versions(),
            gpus=_gpu_states(),
        )

    def _beat(self) -> None:
        while not self._ending.wait(HEARTBEAT_S):
            try:
                if not self._fleet.heartbeat(self.state()) and not self._ending.is_set():
                    logger.error("agent ends: another worker has taken this host's name")
                    os._exit(NAME_TAKEN)
            except DatabaseUnavailable as error:
                logger.warning("agent: heartbeat not written, SQL is away", error=str(error))
            except Exception:
                # One bad answer of a GPU's driver must not make the host unreachable for good.
                logger.exception("agent: heartbeat not written")

    def _listen(self) -> None:
        """Stop requests by Redis, for speed; without Redis the supervisors' heartbeats see them."""
        client = redis.Redis.from_url(
            self._settings.events_redis_url, socket_connect_timeout=3, socket_keepalive=True, health_check_interval=10
        )
        while not self._ending.is_set():
            try:
                with client.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
                    channel.subscribe(nudge_channel(self._settings.host_name))
                    while not self._ending.is_set():
                        message = channel.get_message(timeout=1.0)
                        if message is not None:
                            self._guard.nudge(int(message["data"]))
            except (redis.RedisError, ValueError) as error:
                logger.warning("agent: nudges are away", error=str(error))
                self._ending.wait(1.0)

    def _leave(self, adopt_s: float = 0.0) -> None:
        """The worker shuts down: supervisors give their jobs back, no new one comes, the last closes the door.

        `adopt_s`: how long to wait for supervisors whose agent died before it could tell them.
        """
        logger.info("agent drains", attempts=self._guard.wards)
        self._guard.drain()
        leaving = threading.Thread(target=self._say_goodbye, name="leaving", daemon=True)
        leaving.start()
        adopt_until = time.monotonic() + adopt_s
        while self._guard.wards or leaving.is_alive() or time.monotonic() < adopt_until:
            self._guard.run_once(0.1)
        self._guard.close()
        self._database.close()

    def _say_goodbye(self) -> None:
        self._dispatcher.stop()
        try:
            self._fleet.leave(self._settings.host_name, self._instance)
            Recovery(self._database).release_host(self._settings.host_name)
        except DatabaseUnavailable as error:
            logger.warning("agent leaves without a word: SQL is away", error=str(error))

    def _probe_store(self) -> bool:
        """Whether this host reads from the artifact store what the other reachable hosts write there."""
        try:
            store = ArtifactStore(self._settings.artifacts_url)
            store.write(f"probes/{self._settings.host_name}", b"epochcast")
            for name in self._reachable_hosts():
                b"".join(store.stream(f"probes/{name}"))
        except ArtifactsUnavailable as error:
            logger.error("this host gets no resumed jobs: it can't read the artifact store", error=str(error))
            return False
        return True

    def _reachable_hosts(self) -> list[str]:
        try:
            return self._fleet.reachable()
        except DatabaseUnavailable:
            return []


def _instance_is_alive(instance: str) -> bool:
    """Whether the worker that registered as `instance` on this machine still lives."""
    pid, _, started = instance.partition(":")
    return is_alive(int(pid), int(started))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("epochcast", "torch", "celery"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _gpu_states() -> list[GpuState]:
    return [
        GpuState(
            uuid=gpu.uuid,
            index=gpu.index,
            name=gpu.name,
            total_bytes=gpu.total_bytes,
            used_bytes=gpu.used_bytes,
            users=tuple({"pid": process.pid, "used_bytes": process.used_bytes} for process in gpu.processes),
            utilisation=None if gpu.utilisation is None else round(100 * gpu.utilisation),
        )
        for gpu in gpus.list_gpus()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", action="store_true", help="take over what an earlier worker of this name left")
    parser.add_argument("--warm", action="store_true", help="import torch now, not when the first job comes")
    parser.add_argument("--drain", action="store_true", help="only tell the supervisors that the worker shuts down")
    parser.add_argument("--ready-fd", type=int, default=None, help="descriptor to write to once registered")
    arguments = parser.parse_args()
    logs.configure("agent")
    hide_memory()
    adopt_orphans()
    settings = from_environment()
    Path(settings.work_dir).mkdir(parents=True, exist_ok=True)
    agent = Agent(settings)
    if arguments.drain:
        return agent.run_draining()
    return agent.run(first=arguments.first, warm=arguments.warm, ready_fd=arguments.ready_fd)


if __name__ == "__main__":
    sys.exit(main())
