"""`make soak`: the random mix of all faults (F21) for a set time, judged by the checker of the tests.

Prints its seed; the same seed draws the same faults in the same order, at moments that depend on the machine.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from epochcast.jobs import Status
from shared import database
from shared.database import DatabaseUnavailable
from shared.embedded import RedisServer, falkordb_binary
from shared.processes import adopt_orphans
from shared.settings import Settings
from tests.conftest import make_settings
from tests.faults.cluster import LEASES, Cluster
from tests.faults.findings import Finding
from tests.faults.mix import Mix
from tests.faults.report import Report, write
from tests.faults.subscribers import Audience
from tests.faults.watch import Watch
from tests.postgres import PostgresServer

IN_FLIGHT = 4
END_S = 240.0


class Soak:
    """Jobs are always under way, each with subscribers of all kinds; one fault follows the other."""

    def __init__(self, cluster: Cluster, postgres: PostgresServer | None, seed: int) -> None:
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._mix = Mix(cluster, self._chance, self._running, postgres)
        self._body = cluster.body(max_restarts=1000)
        self._audience = Audience(cluster.url)
        self._watch = Watch(cluster.settings)
        self._jobs: list[int] = []

    def run(self, minutes: float) -> tuple[Counter[str], list[int], Audience, Watch, list[Finding]]:
        before = set(self._cluster.checker.job_ids())
        self._watch.start()
        try:
            self._hurt(time.monotonic() + 60 * minutes)
            self._mix.undo_due(float("inf"))
            self._cluster.heal()
            # A submission whose answer was lost is a job too.
            job_ids = [job_id for job_id in self._cluster.checker.job_ids() if job_id not in before]
            self._cluster.wait_ended(job_ids, timeout_s=END_S)
            answers = self._cluster.let_everybody_hear(self._audience, job_ids)
        finally:
            self._audience.close()
            self._watch.stop()
        weights = self._cluster.reference()
        findings = self._cluster.checker.check(job_ids, heard=self._audience.joined, answers=answers, weights=weights)
        return self._mix.done, job_ids, self._audience, self._watch, findings + self._watch.findings

    def _hurt(self, until: float) -> None:
        while time.monotonic() < until:
            self._submit()
            self._mix.undo_due(time.monotonic())
            name = self._mix.inject()
            print(f"{until - time.monotonic():6.0f} s left: {name}", flush=True)
            time.sleep(self._chance.uniform(0.2, 4))

    def _submit(self) -> None:
        """Keeps jobs in flight; the gateway may be down, and then the next round submits."""
        try:
            while len(self._unended()) < IN_FLIGHT:
                job_id = self._cluster.post(self._body | {"args": [str(self._chance.choice([0.02, 0.05, 0.1]))]})
                self._jobs.append(job_id)
                self._audience.follow(job_id)
        except (httpx2.HTTPError, AssertionError, DatabaseUnavailable) as error:
            print(f"not submitted: {type(error).__name__}", flush=True)

    def _unended(self) -> list[int]:
        self._jobs = [job_id for job_id in self._jobs if not self._cluster.job(job_id).status.is_terminal]
        return self._jobs

    def _running(self) -> list[int]:
        jobs = [self._cluster.job(job_id) for job_id in self._jobs]
        return [job.job_id for job in jobs if job.status is Status.RUNNING]


@contextmanager
def cluster_on(kind: str, folder: Path) -> Iterator[tuple[Cluster, PostgresServer | None]]:
    """A cluster of its own, with its own servers."""
    postgres = PostgresServer() if kind == "postgres" else None
    server = RedisServer(folder / "redis", binary=falkordb_binary())
    try:
        if postgres is not None:
            postgres.start()
        url = postgres.create_database("soak") if postgres else f"sqlite:///{folder / 'epochcast.db'}"
        database.upgrade(url)
        server.start()
        base = make_settings(url, server.url, folder)
        cluster = Cluster(Settings.model_validate({**base.model_dump(exclude_unset=True), **LEASES}), server, folder)
        try:
            cluster.start()
            yield cluster, postgres
        finally:
            cluster.close()
    finally:
        server.stop()
        if postgres is not None:
            postgres.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="drawn, and printed, when not given")
    parser.add_argument("--database", choices=("postgres", "sqlite"), default="postgres")
    parser.add_argument("--no-report", action="store_true", help="leave docs/reliability.md as it is")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}: make soak ARGS='--minutes {options.minutes:g} --seed {seed}'", flush=True)
    for name in [name for name in os.environ if name.startswith("EPOCHCAST_")]:
        del os.environ[name]
    adopt_orphans()
    with (
        tempfile.TemporaryDirectory(prefix="epochcast-soak-") as folder,
        cluster_on(options.database, Path(folder)) as (cluster, postgres),
    ):
        cluster.reference()
        done, job_ids, audience, watch, findings = Soak(cluster, postgres, seed).run(options.minutes)
        report = Report.of(cluster, seed, options.minutes, options.database, done, job_ids, audience, watch, findings)
        if findings:
            print(cluster.output)
    print(report.text)
    if not options.no_report:
        write(report)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
