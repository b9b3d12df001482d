"""Looks all the time for processes that outlive their supervisor (I7), from outside the platform."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from shared.database import Database, DatabaseUnavailable
from shared.settings import Settings
from shared.tables import attempts, members
from tests.faults.findings import Finding
from worker.process_tree import descendants, is_alive, start_time

OUTLIVES_S = 2.0
LOOK_S = 0.1
# A look at SQL for new attempts costs more than one at /proc.
LEARN_S = 0.3


@dataclass(slots=True)
class _Tree:
    """One attempt's processes on one host, as pids with their start times."""

    job_id: int
    supervisor: tuple[int, int]
    launcher: tuple[int, int]
    below: dict[int, int] = field(default_factory=dict)
    lost_at: float | None = None

    def living(self) -> list[int]:
        known = [self.launcher, *self.below.items()]
        return [pid for pid, started in known if is_alive(pid, started)]


class Watch:
    """Runs from `start` to `stop`; `findings` are what it saw meanwhile."""

    def __init__(self, settings: Settings) -> None:
        self._database = Database(settings.database_url.get_secret_value(), patience_s=2, connections=1)
        self._trees: dict[tuple[int, int], _Tree] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")
        self.findings: list[Finding] = []
        self.seen = 0
        """How many process trees it has followed to their supervisor's end."""

    def start(self) -> "Watch":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()
        self._database.close()

    def _run(self) -> None:
        learned_at = 0.0
        while not self._ending.wait(LOOK_S):
            if time.monotonic() - learned_at > LEARN_S:
                learned_at = time.monotonic()
                self._learn()
            for key, tree in list(self._trees.items()):
                if self._look(tree):
                    del self._trees[key]

    def _learn(self) -> None:
        try:
            with self._database.read() as connection:
                for table in (attempts, members):
                    running = sa.and_(table.c.ended_at.is_(None), table.c.launcher_pid.is_not(None))
                    for row in connection.execute(sa.select(table).where(running)):
                        self._meet(row)
        except DatabaseUnavailable:
            return  # the fault of the hour: what is known is watched on

    def _meet(self, row: Any) -> None:
        launcher = (row.launcher_pid, row.launcher_started)
        if launcher not in self._trees and is_alive(*launcher):
            supervisor = (row.supervisor_pid, row.supervisor_started)
            self._trees[launcher] = _Tree(row.job_id, supervisor, launcher)

    def _look(self, tree: _Tree) -> bool:
        """Returns whether there is nothing more to see."""
        for pid in descendants(tree.launcher[0]) if is_alive(*tree.launcher) else ():
            if (started := start_time(pid)) is not None:
                tree.below.setdefault(pid, started)
        now = time.monotonic()
        if tree.lost_at is None and not is_alive(*tree.supervisor):
            tree.lost_at = now
        living = tree.living()
        if not living:
            self.seen += 1
            return True
        if tree.lost_at is not None and now - tree.lost_at > OUTLIVES_S:
            says = (
                f"processes {living} are alive {now - tree.lost_at:.1f} s after their supervisor {tree.supervisor[0]}"
            )
            self.findings.append(Finding("I7", tree.job_id, says))
            return True
        return False
