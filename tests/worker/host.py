"""A worker host in pieces: its agent and its supervisors as processes that a test may stop, freeze and kill."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import redis
import sqlalchemy as sa

from epochcast.events import Complete, Error, EventId, Log, Progress, decode
from epochcast.jobs import TrainingJob
from shared.database import Database
from shared.event_log import Entry, entry_of_row, log_key
from shared.processes import dies_with_parent
from shared.queries import Queries
from shared.settings import Settings
from shared.store import Store
from shared.tables import attempts, placements
from tests.shared.records import spec
from tests.waiting import wait_until
from worker.process_tree import descendants

CHECKOUT = Path(__file__).parents[2]
Message = Progress | Log | Complete | Error


class Host:
    """`settings` are those of every process. Scripts are the trainer's first process: plain Python files."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.database = Database(settings.database_url.get_secret_value())
        self.store = Store(self.database)
        self.queries = Queries(self.database)
        self.redis = redis.Redis.from_url(settings.events_redis_url)
        self._folder = folder
        self.agent: subprocess.Popen[bytes] | None = None
        self._processes: list[subprocess.Popen[bytes]] = []

    def start_agent(self, *arguments: str) -> None:
        ready, told = os.pipe()
        self.agent = self._spawn("worker.agent", *arguments, f"--ready-fd={told}", pass_fds=(told,))
        os.close(told)
        assert os.read(ready, 16) == b"ready", self.output
        os.close(ready)

    def submit(self, **fields: object) -> int:
        """A job that is placed on this host."""
        job, _ = self.store.create(spec(**fields), "alice")  # type: ignore[arg-type]
        self.wait_placed(job.job_id)
        return job.job_id

    def wait_placed(self, job_id: int) -> None:
        def placed() -> bool:
            with self.database.read() as connection:
                query = sa.select(placements.c.host).where(placements.c.job_id == job_id)
                return connection.execute(query).first() is not None

        wait_until(placed, f"the placement of job {job_id}", timeout_s=20)

    def attempt(self, job_id: int, script: str | None = None, hurt: str | None = None) -> "subprocess.Popen[bytes]":
        """Starts a supervisor whose trainer is `script`; None: the real trainer. `hurt`: see tests/faults/hurt.py."""
        command: list[str] = []
        if script is not None:
            path = self._folder / f"script-{job_id}-{len(self._processes)}.py"
            path.write_text(textwrap.dedent(script))
            command = [sys.executable, str(path)]
        module = ["tests.worker.attempt"] if hurt is None else ["tests.faults.hurt", hurt, "tests.worker.attempt"]
        return self._spawn(*module, str(job_id), *command)

    def run(self, script: str | None = None, **fields: object) -> TrainingJob:
        """Submits a job, runs one attempt of it to its end, and returns the job."""
        job_id = self.submit(**fields)
        self.wait_ended(self.attempt(job_id, script))
        return self.store.get(job_id)

    def wait_ended(self, process: "subprocess.Popen[bytes]", timeout_s: float = 120) -> None:
        wait_until(lambda: process.poll() is not None, f"the end of the supervisor\n{self.output}", timeout_s=timeout_s)

    def entries(self, job_id: int) -> list[Entry]:
        """The event log as Redis has it."""
        return [entry_of_row(row) for row in self.redis.xrange(log_key(job_id))]  # type: ignore[union-attr]

    def messages(self, job_id: int) -> list[Message]:
        return [decode(entry.payload) for entry in self.entries(job_id)]

    def logs(self, job_id: int) -> list[str]:
        return [message.message for message in self.messages(job_id) if isinstance(message, Log)]

    def wait_logged(self, job_id: int, line: str) -> None:
        wait_until(lambda: line in self.logs(job_id), f"the log line {line!r}\n{self.output}", timeout_s=30)

    def launcher(self, job_id: int) -> int:
        """The pid of the newest attempt's launcher."""

        def known() -> int:
            with self.database.read() as connection:
                found = connection.execute(
                    sa.select(attempts.c.launcher_pid)
                    .where(attempts.c.job_id == job_id)
                    .order_by(attempts.c.number.desc())
                    .limit(1)
                ).scalar_one_or_none()
                return found or 0

        return wait_until(known, "the launcher's pid", timeout_s=20)

    def tree(self, job_id: int) -> list[int]:
        """The launcher and everything below it."""
        launcher = self.launcher(job_id)
        return [launcher, *descendants(launcher)]

    @property
    def output(self) -> str:
        return (self._folder / "output.log").read_text(errors="replace")

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self.redis.close()
        self.database.close()

    def _spawn(self, module: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> "subprocess.Popen[bytes]":
        with (self._folder / "output.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=CHECKOUT,
                env={**os.environ, **environment(self.settings)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
                preexec_fn=dies_with_parent(),
            )
        self._processes.append(process)
        return process


def environment(settings: Settings) -> dict[str, str]:
    """The settings as the environment that another process reads them from."""
    found = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        plain = value.get_secret_value() if hasattr(value, "get_secret_value") else value
        if plain is not None:
            found[f"EPOCHCAST_{name.upper()}"] = str(plain)
    return found


def assert_gapless(entries: list[Entry]) -> None:
    """Contiguous inside each generation, and each first event names one that is there."""
    before = EventId(0, 0)
    for entry in entries:
        if entry.id.generation == before.generation:
            assert entry.id.seq == before.seq + 1, f"{entry.id} follows {before}"
        assert entry.prev <= before, f"{entry.id} names {entry.prev}, but {before} stands before it"
        before = entry.id
