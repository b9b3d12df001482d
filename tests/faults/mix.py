"""The random mix (F21): each fault as something that can be done to a running cluster at any moment, and undone."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import redis

from epochcast.errors import EpochcastError
from shared.celery_app import Poker
from shared.database import DatabaseUnavailable
from tests.faults.cluster import NAMES, Cluster
from tests.faults.service import alive
from tests.postgres import PostgresServer
from worker.fork_server import READY as FORK_SERVER
from worker.process_tree import descendants


@dataclass(slots=True)
class Later:
    """Something to undo."""

    due: float
    act: Callable[[], None]


@dataclass(slots=True)
class Mix:
    """`running()`: the jobs that train now, as ids. `postgres`: None on SQLite, whose outages are left out."""

    cluster: Cluster
    chance: random.Random
    running: Callable[[], list[int]]
    postgres: PostgresServer | None
    done: Counter[str] = field(default_factory=Counter)
    later: list[Later] = field(default_factory=list)
    frozen: dict[int, str] = field(default_factory=dict)
    """Pids of stopped supervisors, with their host."""
    down: set[str] = field(default_factory=set)
    """Workers that are to be started again later."""

    def inject(self) -> str:
        """One fault. Its name, or `nothing` where the drawn one finds nothing to hurt."""
        faults: list[Callable[[], bool]] = [
            self.f1_connections_cut,
            self.f2_redis_killed,
            self.f3_messages_doubled,
            self.f4_worker_killed_with_its_hint,
            self.f5_worker_killed,
            self.f6_supervisor_killed,
            self.f6_launcher_killed,
            self.f6_trainer_killed,
            self.f6_fork_server_killed,
            self.f6_agent_killed,
            self.f7_supervisor_frozen,
            self.f8_supervisor_and_tree_frozen,
            self.f10_job_stopped,
            self.f12_redis_full,
            self.f12_redis_from_an_older_dump,
            self.f13_redis_frozen,
            self.f14_worker_shut_down,
            self.f16_gateway_killed,
            self.f17_redis_wiped,
        ]
        if self.postgres is not None:
            faults += [self.f9_sql_gone, self.f15_gateway_with_a_wrong_clock]
        fault = self.chance.choice(faults)
        try:
            happened = fault()
        except (DatabaseUnavailable, redis.RedisError, psutil.Error, EpochcastError, ProcessLookupError):
            happened = False  # what it wanted to hurt is down already
        name = fault.__name__ if happened else "nothing"
        self.done[name] += 1
        return name

    def undo_due(self, now: float) -> None:
        due = [one for one in self.later if one.due <= now]
        self.later = [one for one in self.later if one.due > now]
        for one in due:
            one.act()
        for name, worker in self.cluster.workers.items():
            if not worker.is_running and name not in self.down:
                # As a process manager would: one whose first agent is killed while it starts gives up.
                worker.start()

    def _pause(self, least_s: float, most_s: float) -> None:
        time.sleep(self.chance.uniform(least_s, most_s))

    def _job(self) -> int | None:
        jobs = self.running()
        return self.chance.choice(jobs) if jobs else None

    # --- Redis

    def f1_connections_cut(self) -> bool:
        for kind in ("normal", "pubsub"):
            self.cluster.redis.client_kill_filter(_type=kind, skipme=True)
        return True

    def f2_redis_killed(self) -> bool:
        self.cluster.redis_server.kill()
        self._pause(0.5, 6)
        self.cluster.redis_server.start()
        return True

    def f3_messages_doubled(self) -> bool:
        job_id = self._job()
        if job_id is None:
            return False
        poker = Poker(self.cluster.settings.broker_url.get_secret_value())
        for _ in range(20):
            for host in NAMES:
                poker.poke(job_id, host)
        poker.close()
        return True

    def f12_redis_full(self) -> bool:
        self.cluster.redis.config_set("maxmemory", "1mb")
        self._pause(0.5, 4)
        self.cluster.redis.config_set("maxmemory", "0")
        return True

    def f12_redis_from_an_older_dump(self) -> bool:
        self.cluster.redis.save()
        self._pause(1, 4)
        server = self.cluster.redis_server
        server.kill()
        server.start()
        (server.folder / "dump.rdb").unlink()
        return True

    def f13_redis_frozen(self) -> bool:
        self.cluster.redis_server.pause()
        self._pause(0.5, 6)
        self.cluster.redis_server.resume()
        return True

    def f17_redis_wiped(self) -> bool:
        self.cluster.redis.flushall()
        return True

    # --- processes

    def _worker(self) -> str | None:
        """One that runs; it may have a frozen attempt, whose launcher wakes when agent or worker are killed."""
        running = [name for name, worker in self.cluster.workers.items() if worker.is_running]
        return self.chance.choice(running) if running else None

    def _start_later(self, name: str) -> None:
        self.down.add(name)

        def start() -> None:
            self.down.discard(name)
            self.cluster.workers[name].start()

        self.later.append(Later(time.monotonic() + self.chance.uniform(0, 8), start))

    def f4_worker_killed_with_its_hint(self) -> bool:
        name = self._worker()
        if name is None:
            return False
        self.cluster.workers[name].freeze()
        self._pause(0.2, 3)
        self.cluster.workers[name].kill()
        self._start_later(name)
        return True

    def f5_worker_killed(self) -> bool:
        name = self._worker()
        if name is None:
            return False
        self.cluster.workers[name].kill()
        self._start_later(name)
        return True

    def f14_worker_shut_down(self) -> bool:
        name = self._worker()
        if name is None:
            return False
        self.cluster.workers[name].end()
        self._start_later(name)
        return True

    def _kill_of_attempt(self, which: Callable[[int], int | None]) -> bool:
        job_id = self._job()
        pid = which(job_id) if job_id is not None else None
        if pid is None or pid not in alive([pid]):
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    def f6_supervisor_killed(self) -> bool:
        return self._kill_of_attempt(lambda job_id: int(self.cluster.attempt_row(job_id).supervisor_pid))

    def f6_launcher_killed(self) -> bool:
        return self._kill_of_attempt(lambda job_id: int(self.cluster.attempt_row(job_id).launcher_pid))

    def f6_trainer_killed(self) -> bool:
        def trainer(job_id: int) -> int | None:
            below = descendants(self.cluster.attempt_row(job_id).launcher_pid)
            return below[0] if below else None

        return self._kill_of_attempt(trainer)

    def _kill_first(self, is_it: Callable[[psutil.Process], bool]) -> bool:
        """A process of a random worker."""
        name = self._worker()
        if name is None:
            return False
        for pid in self.cluster.workers[name].tree():
            if is_it(psutil.Process(pid)):
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    def f6_fork_server_killed(self) -> bool:
        # Not by its command line: what it forks has the same.
        return self._kill_first(lambda process: process.name() == FORK_SERVER)

    def f6_agent_killed(self) -> bool:
        return self._kill_first(lambda process: "worker.agent" in process.cmdline())

    def f7_supervisor_frozen(self) -> bool:
        return self._freeze(whole=False)

    def f8_supervisor_and_tree_frozen(self) -> bool:
        return self._freeze(whole=True)

    def _freeze(self, *, whole: bool) -> bool:
        """For less than the licence, or past the lease."""
        job_id = self._job()
        if job_id is None or (self.postgres is None):
            return False  # frozen with SQLite's one write lock a process stops everybody
        row = self.cluster.attempt_row(job_id)
        if row.ended_at is not None or self.frozen.keys() & set(alive(list(self.frozen))):
            return False
        pids = [row.supervisor_pid, *([row.launcher_pid, *descendants(row.launcher_pid)] if whole else [])]
        for pid in alive(pids):
            os.kill(pid, signal.SIGSTOP)
        self.frozen[row.supervisor_pid] = row.host

        def thaw() -> None:
            for pid in alive(pids):
                os.kill(pid, signal.SIGCONT)
            self.frozen.pop(row.supervisor_pid, None)

        for_s = self.chance.choice([self.chance.uniform(1, 5), self.chance.uniform(19, 26)])
        self.later.append(Later(time.monotonic() + for_s, thaw))
        return True

    def f16_gateway_killed(self) -> bool:
        if not self.cluster.gateway.is_running:
            return False
        self.cluster.gateway.kill()
        self._pause(0, 2)
        self.cluster.gateway.start()
        return True

    def f15_gateway_with_a_wrong_clock(self) -> bool:
        self.cluster.gateway.kill()
        ahead_s = self.chance.choice([-3600, 3600])
        with self.cluster.gateway_with_clock(ahead_s):
            self._pause(2, 5)
        self.cluster.gateway.start()
        return True

    # --- SQL and users

    def f9_sql_gone(self) -> bool:
        """For less than the licence, for longer, or for longer than the lease."""
        assert self.postgres is not None
        self.postgres.kill()
        self._pause(*self.chance.choice([(0.5, 5), (8, 12), (19, 22)]))
        self.postgres.start()
        return True

    def f10_job_stopped(self) -> bool:
        job_id = self._job()
        if job_id is None:
            return False
        self.cluster.store.request_stop(job_id)
        return True
