"""Processes that work on the record at once, as supervisors and agents do, and how often they got something done."""

import multiprocessing
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

from benchmarks.harness.result import percentile
from epochcast.jobs import Status
from shared.attempt import AttemptRecord
from shared.claims import Claim, ProcessIdentity, claim
from shared.database import Database
from shared.fleet import Fleet, GpuState, HostState
from shared.rows import training_job
from shared.tables import jobs

PATIENCE_S = 60.0
IDENTITY = ProcessIdentity("boot", "namespace", 1, 1)


@dataclass(frozen=True, slots=True)
class Hammered:
    """`done`: of `tried`, by all processes together in `seconds`; the times are of one try."""

    tried: int
    done: int
    seconds: float
    median_ms: float
    p99_ms: float

    @property
    def per_s(self) -> float:
        return self.done / self.seconds


# Does one thing and says whether it got done; None: there is nothing left to do.
_Try = Callable[[], bool | None]
# Makes it in its own process, by the process's number.
Work = Callable[[Database, int, Sequence[int]], _Try]


def hammer(work: Work, url: str, processes: int, ids: Sequence[int], seconds: float) -> Hammered:
    """All begin together; each ends when it has nothing left to do, or after `seconds`."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes + 1), context.Queue()
    workers = [
        context.Process(target=_run, args=(work, url, number, ids, seconds, barrier, answers), daemon=True)
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    barrier.wait(120)
    began = time.monotonic()
    found = [answers.get(timeout=seconds + 120) for _ in workers]
    elapsed = time.monotonic() - began
    for worker in workers:
        worker.join(30)
    times = [one for _, took in found for one in took]
    done = sum(count for count, _ in found)
    middle = percentile(times, 50) if len(times) > 1 else times[0]
    return Hammered(len(times), done, elapsed, 1000 * middle, 1000 * percentile(times, 99))


def _run(
    work: Work,
    url: str,
    number: int,
    ids: Sequence[int],
    seconds: float,
    barrier: Barrier,
    answers: "Queue[tuple[int, list[float]]]",
) -> None:
    database = Database(url, patience_s=PATIENCE_S, connections=1)
    attempt = work(database, number, ids)
    done, took = 0, []
    barrier.wait(120)
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        got = attempt()
        if got is None:
            break
        took.append(time.monotonic() - began)
        done += got
    database.close()
    answers.put((done, took))


def claiming(database: Database, number: int, ids: Sequence[int]) -> _Try:
    """Every process wants every job, in an order of its own; `ids` are jobs that are placed on `host-00000`."""
    order = iter(random.Random(number).sample(list(ids), len(ids)))

    def claim_one() -> bool | None:
        job_id = next(order, None)
        if job_id is None:
            return None
        return claim(database, job_id, "host-00000", 3600, 1, IDENTITY) is not None

    return claim_one


def renewing(database: Database, number: int, ids: Sequence[int]) -> _Try:
    """Renews the leases of running jobs, one after the other, as their supervisors would."""
    records = [_record(database, job_id) for job_id in random.Random(number).sample(list(ids), min(500, len(ids)))]
    place = 0

    def renew() -> bool:
        nonlocal place
        records[place % len(records)].heartbeat(3600)
        place += 1
        return True

    return renew


def _record(database: Database, job_id: int) -> AttemptRecord:
    with database.read() as connection:
        row = connection.execute(jobs.select().where(jobs.c.id == job_id)).one()
    assert row.status == Status.RUNNING
    owned = Claim(training_job(row, []), (), (), 0, ())
    return AttemptRecord(database, owned, archive_limit_bytes=2**20, checkpoints_kept=2)


def beating(database: Database, number: int, ids: Sequence[int]) -> _Try:
    """The heartbeats of hosts with eight GPUs; `ids` are the numbers of the hosts."""
    fleet, order = Fleet(database), random.Random(number)

    def beat() -> bool:
        name = f"host-{order.choice(ids):05}"
        cards = tuple(GpuState(f"GPU-{name}-{index}", index, "H100", 80 * 2**30, 2**29, 97) for index in range(8))
        return fleet.heartbeat(HostState(name, name, "boot", "namespace", 2, 64, 2**40, 2**39, 50.0, gpus=cards))

    return beat
