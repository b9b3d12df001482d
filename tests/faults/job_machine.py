"""A job's states as hypothesis sees them: every call there is, in any order, against the record itself."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from epochcast.events import EventId
from epochcast.jobs import JobError, Status, TrainingJob
from shared.announcer import Announcer
from shared.archive import Chunk
from shared.attempt import AttemptRecord, LeaseLost, ProgressState, StoredFile
from shared.claims import claim
from shared.database import Database
from shared.errors import IllegalTransition
from shared.event_log import EventLog
from shared.fleet import Fleet
from shared.placement import place
from shared.recovery import Recovery
from shared.rows import progress_message
from shared.store import Store
from shared.tables import attempts, gpus, hosts, jobs, metadata, placements
from shared.transitions import error_message
from tests.faults.checker import Checker
from tests.shared.records import IDENTITY, add_host, expire_lease, host_state, record_of, spec
from worker.job_state import complete_message

LEGAL = {
    Status.QUEUED: {Status.RUNNING, Status.STOPPED},
    Status.RUNNING: {Status.QUEUED, Status.SUCCEEDED, Status.FAILED, Status.STOPPED},
    Status.SUCCEEDED: set[Status](),
    Status.FAILED: {Status.QUEUED},
    Status.STOPPED: {Status.QUEUED},
}
HOSTS = ("host-1", "host-2")
MOST_JOBS = 5

Pick = st.integers(min_value=0, max_value=999)


@dataclass(eq=False, slots=True)
class Owner:
    """A supervisor that once claimed a job, and believes for ever that it is its own."""

    job_id: int
    generation: int
    record: AttemptRecord
    status: Status = Status.RUNNING
    seq: int = 1
    announced: bool = False

    def is_owner(self, job: TrainingJob) -> bool:
        return (job.generation, job.status) == (self.generation, self.status)


class JobMachine(RuleBasedStateMachine):
    """Made for one database, whose rows it deletes when it begins."""

    def __init__(self, database: Database, event_log: EventLog, checker: Checker) -> None:
        super().__init__()
        self.database = database
        self.store, self.recovery, self.fleet = Store(database), Recovery(database), Fleet(database)
        self.announcer, self.checker = Announcer(database, event_log), checker
        self.jobs: list[int] = []
        self.owners: list[Owner] = []
        self.seen: dict[int, tuple[Status, int]] = {}
        with database.write() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        for name in HOSTS:
            add_host(database, host_state(name, slots=1, gpus=1))

    def _job(self, pick: int) -> TrainingJob:
        return self.store.get(self.jobs[pick % len(self.jobs)])

    # --- users

    @precondition(lambda self: len(self.jobs) < MOST_JOBS)
    @rule(wanted=st.integers(0, 2), priority=st.integers(-1, 1))
    def submit(self, wanted: int, priority: int) -> None:
        """On a slot, a GPU, or on more GPUs than there are on any host."""
        job, _ = self.store.create(spec(gpus=wanted, priority=priority), "alice")
        self.jobs.append(job.job_id)

    @precondition(lambda self: self.jobs)
    @rule(pick=Pick)
    def stop(self, pick: int) -> None:
        before = self._job(pick)
        try:
            after = self.store.request_stop(before.job_id)
        except IllegalTransition:
            assert before.status in (Status.SUCCEEDED, Status.FAILED)
            return
        assert after.stop_requested
        assert after.status in ({Status.RUNNING} if before.status is Status.RUNNING else {Status.STOPPED})

    @precondition(lambda self: self.jobs)
    @rule(pick=Pick, from_scratch=st.booleans())
    def restart(self, pick: int, from_scratch: bool) -> None:
        before = self._job(pick)
        try:
            after = self.store.restart(before.job_id, from_scratch=from_scratch)
        except IllegalTransition:
            assert before.status not in (Status.FAILED, Status.STOPPED)
            return
        assert (after.status, after.stop_requested, after.error) == (Status.QUEUED, False, None)

    # --- dispatchers

    @rule()
    def place(self) -> None:
        placed = place(self.database)
        assert all(self.store.get(one.job_id).status is Status.QUEUED for one in placed)

    @rule()
    def finish_stopped(self) -> None:
        self.recovery.stop_requested_queued()

    @precondition(lambda self: self.jobs)
    @rule(pick=Pick)
    def lease_runs_out(self, pick: int) -> None:
        before = self._job(pick)
        expire_lease(self.database, before.job_id)
        taken = self.recovery.reap()
        assert taken == ([before.job_id] if before.status is Status.RUNNING else [])

    @precondition(lambda self: self.jobs)
    @rule(pick=Pick)
    def nobody_claims(self, pick: int) -> None:
        job = self._job(pick)
        for host in job.hosts:
            released = self.recovery.release_placement(job.job_id, job.generation, host.name, 0.0)
            assert released == (job.status is Status.QUEUED)

    @rule()
    def announce(self) -> None:
        self.announcer.run()

    # --- hosts

    @rule(host=st.sampled_from(HOSTS), draining=st.booleans())
    def drain(self, host: str, draining: bool) -> None:
        self.fleet.set_draining(host, draining)

    @rule(host=st.sampled_from(HOSTS))
    def host_leaves(self, host: str) -> None:
        released = self.recovery.release_host(host)
        assert all(self.store.get(job_id).status is Status.QUEUED for job_id in released)

    @precondition(lambda self: self.jobs)
    @rule(pick=Pick, host=st.sampled_from(HOSTS))
    def claim(self, pick: int, host: str) -> None:
        before = self._job(pick)
        claimed = claim(self.database, before.job_id, host, 120, 1, IDENTITY)
        may = before.status is Status.QUEUED and host in [place.name for place in before.hosts]
        assert (claimed is not None) == (may and not before.stop_requested)
        if claimed is not None:
            self.owners.append(Owner(before.job_id, claimed.job.generation, record_of(self.database, claimed)))

    # --- supervisors, stale ones too

    @precondition(lambda self: self.owners)
    @rule(pick=Pick, deed=st.sampled_from(["heartbeat", "record", "checkpoint", "requeue", "charge", "lose"]))
    def supervise(self, pick: int, deed: str) -> None:
        owner = self.owners[pick % len(self.owners)]
        before = self.store.get(owner.job_id)
        record, may = owner.record, owner.is_owner(before)
        try:
            match deed:
                case "heartbeat":
                    assert record.heartbeat(120).stop_requested == before.stop_requested
                case "record":
                    self._report(owner)
                case "checkpoint":
                    key = f"jobs/{owner.job_id}/{owner.generation}-{owner.seq}"
                    record.commit_checkpoint(StoredFile("checkpoint", key, 1, "0" * 64, epoch=owner.seq))
                case "requeue" | "charge" if owner.status is Status.RUNNING:
                    record.requeue("drained", "asked to", charged=deed == "charge")
                case "lose":
                    gone = self.recovery.lose(owner.job_id, "gone", only_expired=False, generation=owner.generation)
                    assert gone == (before.generation == owner.generation and before.status is Status.RUNNING)
                    return
                case _:
                    return
            assert may, f"a stale attempt's {deed} was accepted"
        except LeaseLost:
            assert not may, f"the owner's {deed} was refused"

    def _report(self, owner: Owner) -> None:
        owner.seq += 1
        identifier = f"{owner.generation}-{owner.seq}"
        payload = b'{"type":"log","id":"%s","status":"running"}' % identifier.encode()
        try:
            chunk = Chunk(owner.seq, owner.seq, payload)
            owner.record.record(ProgressState(1, 0.1, 0.5, {"loss": 0.5}, None), [], chunk)
        except LeaseLost:
            owner.seq -= 1
            raise

    @precondition(lambda self: self.owners)
    @rule(pick=Pick, status=st.sampled_from([Status.SUCCEEDED, Status.FAILED, Status.STOPPED]))
    def finish(self, pick: int, status: Status) -> None:
        owner = self.owners[pick % len(self.owners)]
        if owner.status is not Status.RUNNING:
            return
        may = owner.is_owner(self.store.get(owner.job_id))
        try:
            self._end(owner, status)
            assert may, "a stale attempt ended the job"
        except LeaseLost:
            assert not may, "the owner could not end its job"

    def _end(self, owner: Owner, status: Status) -> None:
        make: Any = {Status.SUCCEEDED: complete_message({}), Status.FAILED: error_message}.get(status, progress_message)
        owner.record.finish(
            status,
            seq=owner.seq + 1,
            prev=EventId(owner.generation, owner.seq),
            make_event=make,
            lease_s=0,
            outcome=str(status),
            error=JobError(type="user_error", message="no") if status is Status.FAILED else None,
        )
        owner.status = status
        owner.seq += 1

    # --- what always holds

    @invariant()
    def every_change_was_legal(self) -> None:
        for job_id in self.jobs:
            job = self.store.get(job_id)
            before, generation = self.seen.get(job_id, (Status.QUEUED, 1))
            if job.status is not before:
                assert job.status in LEGAL[before], f"job {job_id} went from {before} to {job.status}"
            assert job.generation >= generation, f"job {job_id} went back to generation {job.generation}"
            self.seen[job_id] = job.status, job.generation

    @invariant()
    def only_who_waits_or_runs_holds_anything(self) -> None:
        with self.database.read() as connection:
            placed = set(connection.execute(sa.select(placements.c.job_id)).scalars())
            held = set(connection.execute(sa.select(gpus.c.job_id).where(gpus.c.job_id.is_not(None))).scalars())
            open_attempts = list(
                connection.execute(sa.select(attempts.c.job_id).where(attempts.c.ended_at.is_(None))).scalars()
            )
            status = {row.id: row.status for row in connection.execute(sa.select(jobs.c.id, jobs.c.status))}
        assert {status[job_id] for job_id in placed} <= {Status.QUEUED, Status.RUNNING}
        assert held <= placed
        running = sorted(job_id for job_id, one in status.items() if one == Status.RUNNING)
        assert sorted(open_attempts) == running, "one open attempt for each running job, and no other"
        assert set(running) <= placed

    def teardown(self) -> None:
        """No state is stuck: once hosts are there and supervisors do their work, every job comes to an end."""
        for name in HOSTS:
            self.fleet.set_draining(name, False)
        # Hosts with room for what no host had room for.
        for name in HOSTS:
            add_host(self.database, host_state(name, slots=MOST_JOBS, gpus=2))
        with self.database.write() as connection:
            connection.execute(sa.update(hosts).values(heartbeat_at=self.database.now))
            connection.execute(sa.update(jobs).values(not_before=0.0))
        for _ in range(2 * MOST_JOBS):
            for job_id in self.jobs:
                expire_lease(self.database, job_id)
            self.recovery.reap()
            self.recovery.stop_requested_queued()
            place(self.database)
            self._claim_and_finish()
        stuck = [(job.job_id, job.status) for job in map(self.store.get, self.jobs) if not job.status.is_terminal]
        assert stuck == []
        self.announcer.run()
        self.checker.assert_whole(self.jobs)

    def _claim_and_finish(self) -> None:
        for job_id in self.jobs:
            for place_ in self.store.get(job_id).hosts:
                claimed = claim(self.database, job_id, place_.name, 120, 1, IDENTITY)
                if claimed is not None:
                    self._end(
                        Owner(job_id, claimed.job.generation, record_of(self.database, claimed)), Status.SUCCEEDED
                    )
