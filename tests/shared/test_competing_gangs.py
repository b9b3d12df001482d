"""F19: jobs on two hosts that compete for the same two, hosts that don't come; nothing deadlocks, nothing overlaps."""

import random
import threading
import time

import sqlalchemy as sa

from epochcast.jobs import Status
from shared.attempt import AttemptRecord
from shared.claims import Membership, claim
from shared.database import Database
from shared.gang import MembersAlive
from shared.member_record import MemberRecord
from shared.membership import Standing, claim_member, standing, started_member
from shared.placement import place
from shared.recovery import Recovery, waits_for_others
from shared.store import Store
from shared.tables import jobs, placements
from tests.shared.gangs import IDENTITY, MASTER, add_hosts, create_gang
from tests.shared.records import record_of
from tests.waiting import wait_until

JOBS = 12
PATIENCE_S = 0.3


class Fleet:
    """Two hosts and a dispatcher, as threads; a host passes over every fourth hint at random."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ending = threading.Event()
        self.running: dict[str, int] = {}
        self.faults: list[str] = []
        self._lock = threading.Lock()
        self._random = random.Random(19)
        self.threads = [threading.Thread(target=self._host, args=(name,)) for name in add_hosts(database, 2)]
        self.threads += [threading.Thread(target=self._dispatch) for _ in range(2)]

    def _dispatch(self) -> None:
        recovery = Recovery(self.database)
        while not self.ending.is_set():
            place(self.database)
            with self.database.read() as connection:
                late = placements.c.placed_at < self.database.now - PATIENCE_S
                absent = sa.and_(late, sa.not_(waits_for_others(self.database.now)))
                rows = connection.execute(
                    sa.select(placements.c.job_id, placements.c.host, jobs.c.generation)
                    .join(jobs, jobs.c.id == placements.c.job_id)
                    .where(jobs.c.status == Status.QUEUED, absent)
                ).all()
            for row in rows:
                recovery.release_placement(row.job_id, row.generation, row.host, 0.0)
            time.sleep(0.02)

    def _host(self, name: str) -> None:
        while not self.ending.is_set():
            with self.database.read() as connection:
                here = sa.select(placements.c.job_id).join(jobs, jobs.c.id == placements.c.job_id)
                waiting = here.where(placements.c.host == name, jobs.c.status == Status.QUEUED)
                hinted = connection.execute(waiting).scalars().all()
            for job_id in hinted:
                if self._random.random() < 0.25:
                    time.sleep(PATIENCE_S)  # a hint that was lost
                    continue
                membership = claim_member(self.database, job_id, name, 30, IDENTITY, "127.0.0.1")
                if membership is not None:
                    self._take_part(membership)
            time.sleep(0.01)

    def _take_part(self, membership: Membership) -> None:
        while True:
            match standing(self.database, membership):
                case Standing.RELEASED:
                    return
                case Standing.READY:
                    claimed = claim(
                        self.database, membership.job_id, membership.host, 30, 1, IDENTITY, membership, MASTER
                    )
                    if claimed is not None:
                        self._train(membership)
                        record = record_of(self.database, claimed)
                        wait_until(lambda: self._try_requeue(record), "the other member's end")  # noqa: B023
                        return
                case Standing.STARTED:
                    started = started_member(self.database, membership)
                    assert started is not None
                    self._train(membership)
                    MemberRecord(self.database, started, membership).end("succeeded", None, 0)
                    return
                case Standing.WAITING:
                    time.sleep(0.01)

    def _train(self, membership: Membership) -> None:
        with self._lock:
            if membership.host in self.running:
                self.faults.append(f"{membership} while {self.running[membership.host]} runs there")
            self.running[membership.host] = membership.job_id
        time.sleep(0.02)
        with self._lock:
            del self.running[membership.host]

    def _try_requeue(self, record: AttemptRecord) -> bool:
        try:
            # Back of the queue, never to be placed again: this test counts attempts.
            record.requeue("drained", "has had its turn", delay_s=3600)
        except MembersAlive:
            return False
        return True


def test_competing_jobs_on_two_hosts_all_get_their_turn(database: Database) -> None:
    fleet = Fleet(database)
    store = Store(database)
    ids = [create_gang(store) for _ in range(JOBS)]
    for thread in fleet.threads:
        thread.start()
    try:
        wait_until(
            lambda: all(store.get(job_id).attempt == 1 and not store.get(job_id).hosts for job_id in ids),
            "an attempt of each job",
            timeout_s=90,
        )
    finally:
        fleet.ending.set()
        for thread in fleet.threads:
            thread.join()
    assert fleet.faults == []
    with database.read() as connection:
        assert connection.execute(sa.select(placements)).all() == []
