"""A platform as in production, small: one gateway, two whole workers, its own Redis, SQLite or PostgreSQL.

Every part is a process that a test may hurt. `heal` brings all of them back, so that one cluster serves many faults.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import redis
import sqlalchemy as sa

import epochcast
from epochcast.jobs import Status, TrainingJob
from epochcast.packing import choose
from shared.database import Database
from shared.embedded import RedisServer, free_port
from shared.fleet import Fleet
from shared.queries import Queries
from shared.settings import Settings
from shared.store import Store
from shared.tables import attempts, hosts, jobs
from tests.faults.checker import Checker
from tests.faults.scripts import TRAIN
from tests.faults.service import Service
from tests.faults.steps import Step, read_steps, with_steps
from tests.faults.subscribers import Audience
from tests.faults.watch import Watch
from tests.waiting import wait_until
from tests.worker.host import environment
from worker.process_tree import descendants

# The lease outlives the 15 s in which a dead host still counts as there; else a job would be placed on it again.
LEASES = {"lease_s": 18.0, "licence_s": 7.0, "kill_s": 1.0, "heartbeat_s": 0.5, "stop_grace_s": 3.0}
NAMES = ("host-a", "host-b")
EPOCHS = 40
HEARD_S = 60.0


class Cluster:
    """`slots`: of each worker."""

    def __init__(self, settings: Settings, server: RedisServer, folder: Path, slots: int = 8) -> None:
        self.settings = settings
        self.redis_server = server
        self.folder = folder
        self.steps = folder / "steps"
        self.log = folder / "output.log"
        self.database = Database(settings.database_url.get_secret_value())
        self.store, self.queries = Store(self.database), Queries(self.database)
        self.redis = redis.Redis.from_url(settings.events_redis_url, socket_timeout=20)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        shared = self._shared = environment(settings) | {
            "EPOCHCAST_AUTH": "none",
            "EPOCHCAST_PORT": str(self.port),
            "EPOCHCAST_WS_MAX_CONNECTIONS_PER_JOB": "500",
        }
        self.gateway = Service("api", shared, self.log, "--quiet")
        self.workers = {
            name: Service(
                "worker",
                shared
                | {
                    "EPOCHCAST_HOST_NAME": name,
                    "EPOCHCAST_WORK_DIR": str(folder / name),
                    "EPOCHCAST_SLOTS": str(slots),
                },
                self.log,
            )
            for name in NAMES
        }
        self.checker = Checker(settings, self.steps)
        self._bundle: dict[str, str] = {}
        self._reference: bytes | None = None

    # --- its parts

    def start(self) -> None:
        for service in (self.gateway, *self.workers.values()):
            service.start()
        self.wait_whole()

    def wait_whole(self) -> None:
        """Until the gateway answers and both hosts are ready."""
        wait_until(self._gateway_answers, f"the gateway\n{self.output}", timeout_s=60)
        wait_until(lambda: self.ready_hosts() == list(NAMES), f"both hosts\n{self.output}", timeout_s=90)

    def heal(self) -> None:
        """Whatever a test has left broken is started again."""
        if not self.redis_server.is_running:
            self.redis_server.start()
        for service in (self.gateway, *self.workers.values()):
            if service.is_running:
                service.thaw()
            else:
                service.start()
        for name in NAMES:
            Fleet(self.database).set_draining(name, False)
        self.wait_whole()

    def close(self) -> None:
        for service in (*self.workers.values(), self.gateway):
            if service.is_running:
                service.end()
        self.redis.close()
        self.database.close()

    def _gateway_answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", trust_env=False, timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def ready_hosts(self) -> list[str]:
        """Those whose worker runs and has registered since it was started."""
        running = {name for name, worker in self.workers.items() if worker.is_running}
        of_process = {f"{worker.pid}:" for worker in self.workers.values() if worker.process is not None}
        with self.database.read() as connection:
            rows = connection.execute(sa.select(hosts.c.name, hosts.c.instance)).all()
        instances = {row.name: row.instance for row in rows}
        return [
            host["name"]
            for host in Fleet(self.database).hosts()
            if host["status"] == "ready"
            and host["name"] in running
            and any(instances.get(host["name"], "").startswith(pid) for pid in of_process)
        ]

    @property
    def output(self) -> str:
        """The newest of what all processes printed."""
        return self.log.read_text(errors="replace")[-8000:] if self.log.exists() else ""

    @contextmanager
    def gateway_with_clock(self, ahead_s: float) -> Iterator[None]:
        """In place of the gateway, which was ended: one whose process believes it is another time."""
        wrong = Service("tests.faults.hurt", self._shared, self.log, f"clock={ahead_s:g}", "api", "--quiet")
        outlives = self.gateway
        self.gateway = wrong
        wrong.start()
        try:
            wait_until(self._gateway_answers, f"the gateway with a wrong clock\n{self.output}", timeout_s=60)
            yield
        finally:
            self.gateway = outlives
            wrong.kill()

    # --- jobs

    def bundle(self, script: str) -> str:
        """The script with its step log, uploaded."""
        if script not in self._bundle:
            folder = self.folder / f"code-{len(self._bundle)}"
            folder.mkdir()
            (folder / "train.py").write_text(with_steps(script, self.steps))
            with epochcast.Client(self.url) as client:
                self._bundle[script] = client.upload(choose(folder / "train.py"))
        return self._bundle[script]

    def body(self, script: str = TRAIN, *, epochs: int = EPOCHS, **fields: object) -> dict[str, Any]:
        """What a submission sends."""
        code = {"bundle": self.bundle(script), "entrypoint": "train.py", "name": "fault"}
        return {**code, "total_epochs": epochs, **fields}

    def submit(self, script: str = TRAIN, *, epochs: int = EPOCHS, **fields: object) -> int:
        """Through the gateway; the job's id."""
        return self.post(self.body(script, epochs=epochs, **fields))

    def post(self, body: dict[str, Any]) -> int:
        answer = httpx2.post(f"{self.url}/api/v1/training-jobs", json=body, trust_env=False, timeout=20)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["job_id"])

    def stop(self, job_id: int) -> None:
        """Through the gateway."""
        answer = httpx2.post(f"{self.url}/api/v1/training-jobs/{job_id}/stop", trust_env=False, timeout=20)
        assert answer.status_code == 202, answer.text

    def reference(self) -> bytes:
        """What an uninterrupted run of the script ends with."""
        if self._reference is None:
            [job_id] = self.wait_ended([self.submit()])
            assert self.store.get(job_id).attempt == 1, f"it was to be left alone\n{self.output}"
            self.checker.assert_whole([job_id])
            self._reference = self.checker.weights(job_id)
        assert self._reference is not None
        return self._reference

    def job(self, job_id: int) -> TrainingJob:
        return self.store.get(job_id)

    def took_steps(self, job_id: int) -> list[Step]:
        return read_steps(self.steps, job_id)

    def wait_steps(self, job_id: int, count: int, *, attempt: int = 1, timeout_s: float = 60) -> None:
        """Until an attempt has computed so much, by its own account."""

        def there() -> bool:
            return sum(step.attempt >= attempt for step in self.took_steps(job_id)) >= count

        wait_until(there, f"{count} steps of attempt {attempt} of job {job_id}\n{self.output}", timeout_s=timeout_s)

    def wait_more_steps(self, job_id: int, count: int, *, timeout_s: float = 60) -> None:
        """The training's own clock: it goes on."""
        self.wait_steps(job_id, len(self.took_steps(job_id)) + count, timeout_s=timeout_s)

    def wait_checkpoint(self, job_id: int) -> None:
        def committed() -> bool:
            return any(row["kind"] == "checkpoint" for row in self.queries.artifacts(job_id))

        wait_until(committed, f"a committed checkpoint of job {job_id}\n{self.output}", timeout_s=60)

    def wait_status(self, job_id: int, status: Status, timeout_s: float = 60) -> None:
        what = f"job {job_id} being {status}\n{self.output}"
        wait_until(lambda: self.job(job_id).status is status, what, timeout_s=timeout_s)

    def wait_ended(self, job_ids: list[int], timeout_s: float = 120) -> list[int]:
        """Until each has ended and said so in Redis."""

        def ended() -> bool:
            if not all(self.job(job_id).status.is_terminal for job_id in job_ids):
                return False
            return not {waiting.job_id for waiting in self.store.unannounced()} & set(job_ids) and not self._owned(
                job_ids
            )

        wait_until(ended, f"the end of jobs {job_ids}\n{self.output}", timeout_s=timeout_s, every_s=0.1)
        return job_ids

    def _owned(self, job_ids: list[int]) -> bool:
        """Whether a supervisor still ships the last events of one."""
        with self.database.read() as connection:
            leased = sa.and_(jobs.c.id.in_(job_ids), jobs.c.lease_until > self.database.now)
            return connection.execute(sa.select(jobs.c.id).where(leased)).first() is not None

    def attempt_row(self, job_id: int) -> Any:
        """The newest attempt: host, supervisor_pid, launcher_pid, …"""

        def found() -> Any:
            with self.database.read() as connection:
                query = sa.select(attempts).where(attempts.c.job_id == job_id, attempts.c.launcher_pid.is_not(None))
                return connection.execute(query.order_by(attempts.c.number.desc()).limit(1)).one_or_none()

        return wait_until(found, f"an attempt of job {job_id}\n{self.output}", timeout_s=60)

    def tree(self, job_id: int) -> list[int]:
        """The newest attempt's launcher and all below it."""
        launcher = self.attempt_row(job_id).launcher_pid
        return [launcher, *descendants(launcher)]

    def drain(self, host: str, draining: bool) -> None:
        """Through the gateway."""
        verb = "drain" if draining else "resume"
        httpx2.post(f"{self.url}/api/v1/hosts/{host}/{verb}", trust_env=False, timeout=20).raise_for_status()

    def outcomes(self, job_id: int) -> list[str | None]:
        return [row["outcome"] for row in self.queries.attempts(job_id)]

    # --- judging

    def let_everybody_hear(self, audience: Audience, job_ids: list[int]) -> dict[int, str]:
        """Until every subscriber has had the end, those too who come only now. What the gateway says of each job."""
        for job_id in job_ids:
            audience.follow(job_id)
        self.wait_heard_out(audience)
        url = f"{self.url}/api/v1/training-jobs"
        return {
            job_id: httpx2.get(f"{url}/{job_id}", trust_env=False, timeout=30).json()["status"] for job_id in job_ids
        }

    def wait_heard_out(self, audience: Audience) -> None:
        """Until every subscriber has had the end."""
        deadline = time.monotonic() + HEARD_S
        while waiting := audience.waiting():
            said = "\n".join(map(str, waiting))
            assert time.monotonic() < deadline, f"in vain they wait for the last word:\n{said}\n{self.output}"
            time.sleep(0.05)

    @contextmanager
    def watched(self) -> Iterator[Audience]:
        """Faults are injected inside: at the end the checker has looked at every job submitted meanwhile."""
        before = set(self.checker.job_ids())
        audience, watch = Audience(self.url), Watch(self.settings).start()
        try:
            yield audience
            mine = [job_id for job_id in self.checker.job_ids() if job_id not in before]
            self.wait_ended(mine)
            answers = self.let_everybody_hear(audience, mine)
        finally:
            audience.close()
            watch.stop()
        self.checker.assert_whole(mine, heard=audience.joined, answers=answers, weights=self._reference)
        assert not watch.findings, "\n".join(map(str, watch.findings))
