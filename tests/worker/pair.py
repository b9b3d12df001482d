"""Two worker hosts of different names on this machine, as jobs on several hosts see them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from epochcast.jobs import Status, TrainingJob
from shared.tables import members, placements
from tests.shared.records import spec
from tests.waiting import wait_until
from tests.worker.host import Host
from worker.process_tree import descendants, start_time

Supervisor = subprocess.Popen[bytes]
NAMES = ("host-a", "host-b")


class Pair:
    """Hosts by name; a job's processes by its members' order."""

    def __init__(self, make_host: Callable[..., Host], folder: Path, **changes: object) -> None:
        self._make_host = make_host
        self._folder = folder
        self._changes = changes
        self.hosts = {name: self.add(name) for name in NAMES}
        self.first = self.hosts[NAMES[0]]
        self.store, self.queries = self.first.store, self.first.queries

    def add(self, name: str) -> Host:
        return self._make_host(host_name=name, work_dir=self._folder / name, slots=1, **self._changes)

    def submit(self, **fields: object) -> int:
        """A job on both hosts, not placed yet."""
        return self.store.create(spec(nodes=2, **fields), "alice")[0].job_id  # type: ignore[arg-type]

    def placed(self, job_id: int) -> list[Host]:
        """The hosts of a job once it is placed, by member."""

        def found() -> list[str]:
            with self.first.database.read() as connection:
                query = sa.select(placements.c.host).where(placements.c.job_id == job_id)
                return list(connection.execute(query.order_by(placements.c.member)).scalars())

        names = wait_until(found, f"the placement of job {job_id}\n{self.output}", timeout_s=30)
        return [self.hosts[name] for name in names]

    def start(self, job_id: int, script: str) -> list[Supervisor]:
        """A supervisor on each host, member 0's first."""
        return [host.attempt(job_id, script) for host in self.placed(job_id)]

    def wait_ended(self, supervisors: list[Supervisor], timeout_s: float = 120) -> None:
        for supervisor in supervisors:
            self.first.wait_ended(supervisor, timeout_s)

    def wait_status(self, job_id: int, status: Status, timeout_s: float = 60) -> None:
        what = f"job {job_id} being {status}\n{self.output}"
        wait_until(lambda: self.store.get(job_id).status is status, what, timeout_s=timeout_s)

    def wait_epoch(self, job_id: int, epoch: int) -> None:
        what = f"epoch {epoch} of job {job_id}\n{self.output}"
        wait_until(lambda: self.store.get(job_id).current_epoch >= epoch, what, timeout_s=90)

    def wait_checkpoint(self, job_id: int) -> None:
        wait_until(lambda: self.queries.artifacts(job_id), "a committed checkpoint", timeout_s=90)

    def run(self, script: str, **fields: object) -> TrainingJob:
        job_id = self.submit(**fields)
        self.wait_ended(self.start(job_id, script))
        return self.store.get(job_id)

    def launcher(self, job_id: int, member: int) -> int:
        if member == 0:
            return self.first.launcher(job_id)

        def known() -> int:
            with self.first.database.read() as connection:
                query = sa.select(members.c.launcher_pid).where(members.c.job_id == job_id, members.c.member == member)
                newest = query.order_by(members.c.generation.desc()).limit(1)
                return connection.execute(newest).scalar_one_or_none() or 0

        return wait_until(known, "the member's launcher", timeout_s=30)

    def trees(self, job_id: int) -> list[int]:
        """Every process of the attempt on both hosts."""
        roots = [self.launcher(job_id, member) for member in (0, 1)]
        return [pid for root in roots for pid in (root, *descendants(root))]

    def logs(self, job_id: int) -> list[str]:
        return self.first.logs(job_id)

    def wait_logged(self, job_id: int, line: str) -> None:
        wait_until(lambda: line in self.logs(job_id), f"the log line {line!r}\n{self.output}", timeout_s=90)

    @property
    def output(self) -> str:
        return self.first.output


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if start_time(pid) is not None]
