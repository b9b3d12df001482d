"""Attempts whose processes are killed, frozen and cut off: nothing computes twice, nothing is lost, nothing is left."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from epochcast.events import BEFORE_ALL
from epochcast.jobs import Status
from shared.claims import ProcessIdentity, claim
from shared.counters import Counted, totals
from shared.database import Database, DatabaseUnavailable
from shared.embedded import RedisServer
from shared.placement import place
from shared.processes import dies_with_parent
from shared.recovery import Recovery
from shared.settings import Settings
from shared.store import Store
from shared.tables import attempts, jobs
from tests.shared.records import add_host, expire_lease, host_state, record_of, spec
from tests.waiting import wait_until
from tests.worker.host import Host, assert_gapless
from worker.predecessor import release_predecessors
from worker.process_tree import boot_id, descendants, pid_namespace, start_time

pytestmark = pytest.mark.checked

SLOW = """
    import sys, time
    import epochcast
    run = epochcast.init()
    done = {"epoch": 0}
    run.state(done=done)
    resumed = run.resume()
    print("resumed" if resumed else "fresh", done["epoch"], flush=True)
    for epoch in run.epochs():
        time.sleep(0.2)
        done["epoch"] = epoch
        run.report(epoch=epoch, train_loss=1.0 / epoch)
        run.checkpoint()
"""


def epoch_of(host: Host, job_id: int) -> int:
    return host.store.get(job_id).current_epoch


def wait_epoch(host: Host, job_id: int, epoch: int) -> None:
    wait_until(lambda: epoch_of(host, job_id) >= epoch, f"epoch {epoch} of job {job_id}\n{host.output}", timeout_s=40)


def wait_checkpoint(host: Host, job_id: int) -> None:
    wait_until(lambda: host.queries.artifacts(job_id), "a committed checkpoint", timeout_s=40)


def freeze_between_writes(host: Host, process: "subprocess.Popen[bytes]") -> None:
    """SQLite has one write lock, and a process frozen with it locks everybody out: here it must be frozen without."""

    def has_stopped() -> bool:
        """A thread that is inside a system call ends it first, and that call may take the lock."""
        states = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/status")]
        return all("State:\tT (stopped)" in state for state in states)

    def is_free() -> bool:
        process.send_signal(signal.SIGSTOP)
        wait_until(has_stopped, "the freezing of every thread")
        database = Database(host.settings.database_url.get_secret_value(), patience_s=0.3)
        try:
            with database.write():
                return True
        except DatabaseUnavailable:
            process.send_signal(signal.SIGCONT)
            return False
        finally:
            database.close()

    wait_until(is_free, "a moment without a write")


def lease_of(host: Host, job_id: int) -> float:
    """Until when its owner has the job, by the clock that all of this machine's processes have."""
    with host.database.read() as connection:
        return float(connection.execute(sa.select(jobs.c.lease_until).where(jobs.c.id == job_id)).scalar_one())


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if start_time(pid) is not None]


def test_a_killed_supervisor_takes_its_tree_along_and_the_next_attempt_resumes(hasty_host: Host) -> None:
    host = hasty_host
    job_id = host.submit(total_epochs=20)
    supervisor = host.attempt(job_id, SLOW)
    wait_epoch(host, job_id, 3)
    wait_checkpoint(host, job_id)
    tree = host.tree(job_id)
    supervisor.kill()
    supervisor.wait()
    lease_until = lease_of(host, job_id)
    wait_until(lambda: not alive(tree), "the end of the whole tree", timeout_s=host.settings.licence_s - 1)
    # The dispatcher (in the agent) takes the job back once the lease has run out, and places it again.
    wait_until(lambda: host.store.get(job_id).status is Status.QUEUED, f"the requeue\n{host.output}", timeout_s=40)
    assert time.time() > lease_until
    host.wait_placed(job_id)
    host.wait_ended(host.attempt(job_id, SLOW))
    job = host.store.get(job_id)
    assert (job.status, job.attempt, job.current_epoch) == (Status.SUCCEEDED, 2, 20)
    assert any(line.startswith("resumed") for line in host.logs(job_id))
    assert [row["outcome"] for row in host.queries.attempts(job_id)] == ["lost", "succeeded"]
    assert host.queries.metrics(job_id)["epoch"] == list(range(1, 21))
    assert_gapless(host.entries(job_id))


def test_a_supervisor_frozen_past_its_lease_writes_nothing_when_it_wakes(hasty_host: Host) -> None:
    host = hasty_host
    job_id = host.submit(total_epochs=1000)
    frozen = host.attempt(job_id, SLOW)
    wait_epoch(host, job_id, 2)
    tree = host.tree(job_id)
    freeze_between_writes(host, frozen)
    wait_until(lambda: not alive(tree), "the tree's end by its licence", timeout_s=host.settings.licence_s + 3)
    assert host.store.get(job_id).status is Status.RUNNING, "the trainer ended before the lease did"
    wait_until(lambda: host.store.get(job_id).status is Status.QUEUED, f"the requeue\n{host.output}", timeout_s=40)
    generation = host.store.get(job_id).generation
    host.wait_placed(job_id)
    second = host.attempt(job_id, SLOW)
    wait_until(lambda: host.store.get(job_id).status is Status.RUNNING, "the second attempt", timeout_s=20)
    frozen.send_signal(signal.SIGCONT)
    host.wait_ended(frozen)
    assert host.store.get(job_id).status is Status.RUNNING
    host.store.request_stop(job_id)
    host.wait_ended(second)
    assert host.store.get(job_id).status is Status.STOPPED
    entries = host.entries(job_id)
    assert_gapless(entries)
    after = [entry.id.generation for entry in entries[[entry.id.generation for entry in entries].index(generation) :]]
    assert after == sorted(after), "no event of the frozen attempt stands behind its successor's"


def test_a_frozen_launcher_and_trainer_end_by_the_agents_hand(hasty_host: Host) -> None:
    host = hasty_host
    job_id = host.submit(total_epochs=1000)
    supervisor = host.attempt(job_id, SLOW)
    wait_epoch(host, job_id, 1)
    tree = host.tree(job_id)
    for pid in tree:
        os.kill(pid, signal.SIGSTOP)
    host.store.request_stop(job_id)
    host.wait_ended(supervisor)
    assert alive(tree) == []
    assert host.store.get(job_id).status is Status.STOPPED


def test_a_killed_launcher_loses_the_attempt_but_not_the_job(hasty_host: Host) -> None:
    host = hasty_host
    job_id = host.submit(total_epochs=20)
    supervisor = host.attempt(job_id, SLOW)
    wait_epoch(host, job_id, 2)
    tree = host.tree(job_id)
    os.kill(tree[0], signal.SIGKILL)
    host.wait_ended(supervisor)
    assert alive(tree) == []
    assert host.store.get(job_id).status is Status.QUEUED
    assert host.queries.attempts(job_id)[0]["reason"] == "the attempt's launcher was killed"
    host.wait_placed(job_id)
    host.wait_ended(host.attempt(job_id, SLOW))
    assert host.store.get(job_id).status is Status.SUCCEEDED
    assert_gapless(host.entries(job_id))


def test_a_killed_agent_changes_nothing_for_what_runs_and_its_successor_guards_it(hasty_host: Host) -> None:
    host = hasty_host
    job_id = host.submit(total_epochs=1000)
    supervisor = host.attempt(job_id, SLOW)
    wait_epoch(host, job_id, 1)
    assert host.agent is not None
    host.agent.kill()
    host.agent.wait()
    seen = epoch_of(host, job_id)
    wait_epoch(host, job_id, seen + 3)
    host.start_agent()
    wait_epoch(host, job_id, epoch_of(host, job_id) + 6)
    tree = host.tree(job_id)
    for pid in tree:
        os.kill(pid, signal.SIGSTOP)
    supervisor.kill()
    # Frozen, the launcher can't act on its lifeline: only the new agent can.
    wait_until(lambda: not alive(tree), "the tree's end by the new agent", timeout_s=20)


def test_a_killed_trainer_is_a_failure_with_its_signal(host: Host) -> None:
    job_id = host.submit(total_epochs=1000)
    supervisor = host.attempt(job_id, SLOW)
    wait_epoch(host, job_id, 1)
    os.kill(host.tree(job_id)[1], signal.SIGKILL)
    host.wait_ended(supervisor)
    job = host.store.get(job_id)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert (job.error.type, job.error.signal) == ("user_error", "SIGKILL")


def test_stop_reaches_a_training_script_which_checkpoints_and_can_be_restarted(host: Host) -> None:
    job_id = host.submit(total_epochs=1000)
    supervisor = host.attempt(job_id, SLOW)
    wait_epoch(host, job_id, 2)
    host.store.request_stop(job_id)
    host.redis.publish(f"ec:host:{host.settings.host_name}:nudge", str(job_id))
    host.wait_ended(supervisor, timeout_s=20)
    stopped = host.store.get(job_id)
    assert stopped.status is Status.STOPPED
    last = host.messages(job_id)[-1]
    assert (last.type, last.status) == ("progress", Status.STOPPED)
    host.store.restart(job_id)
    host.wait_placed(job_id)
    again = host.attempt(job_id, SLOW)
    wait_epoch(host, job_id, stopped.current_epoch + 2)
    host.wait_logged(job_id, f"resumed {stopped.current_epoch}")
    host.store.request_stop(job_id)
    host.wait_ended(again, timeout_s=20)
    assert_gapless(host.entries(job_id))


def test_a_script_that_ignores_the_stop_is_killed_after_the_grace(hasty_host: Host) -> None:
    host = hasty_host
    script = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf", flush=True)
        time.sleep(600)
    """
    job_id = host.submit(total_epochs=1)
    supervisor = host.attempt(job_id, script)
    host.wait_logged(job_id, "deaf")
    host.store.request_stop(job_id)
    host.wait_ended(supervisor, timeout_s=30)
    assert host.store.get(job_id).status is Status.STOPPED


def test_a_wiped_redis_is_rebuilt_from_the_journal(host: Host) -> None:
    job_id = host.submit(total_epochs=20)
    supervisor = host.attempt(job_id, SLOW)
    wait_epoch(host, job_id, 3)
    host.redis.flushall()
    host.wait_ended(supervisor)
    assert host.store.get(job_id).status is Status.SUCCEEDED
    entries = host.entries(job_id)
    assert [str(entry.id) for entry in entries[:2]] == ["2-1", "2-2"], "this generation is whole again"
    assert entries[-1].type == "complete"
    own = [entry for entry in entries if entry.id.generation == 2]
    assert [entry.id.seq for entry in own] == list(range(1, len(own) + 1))
    archived = host.queries.archived(job_id, BEFORE_ALL, 10_000)
    assert [entry.id for entry in archived] == [entries[0].prev, *(entry.id for entry in entries)]


def test_training_goes_on_while_redis_is_frozen_and_events_catch_up_in_order(
    host: Host, redis_server: RedisServer
) -> None:
    job_id = host.submit(total_epochs=30)
    supervisor = host.attempt(job_id, SLOW)
    wait_epoch(host, job_id, 2)
    redis_server.pause()
    wait_epoch(host, job_id, epoch_of(host, job_id) + 5)
    redis_server.resume()
    host.wait_ended(supervisor)
    assert host.store.get(job_id).status is Status.SUCCEEDED
    assert_gapless(host.entries(job_id))
    assert [m.current_epoch for m in host.messages(job_id) if m.type == "progress" and m.current_epoch] == [
        *range(1, 31)
    ]


def test_a_new_worker_gives_its_predecessors_jobs_back_at_once(host: Host) -> None:
    job_id = host.submit(total_epochs=1000)
    supervisor = host.attempt(job_id, SLOW)
    wait_epoch(host, job_id, 1)
    tree = host.tree(job_id)
    assert host.agent is not None
    host.agent.kill()
    host.agent.wait()
    supervisor.kill()
    supervisor.wait()
    host.start_agent("--first")
    assert alive(tree) == []
    assert host.store.get(job_id).status is Status.QUEUED
    with host.database.read() as connection:
        assert connection.execute(sa.select(attempts.c.outcome)).scalar_one() == "lost"


def test_a_new_worker_ends_also_what_others_have_taken_back_meanwhile(sqlite_settings: Settings) -> None:
    """Its lease ran out, so its job is elsewhere by now; what is left of it here holds a GPU's memory."""
    database = Database(sqlite_settings.database_url.get_secret_value())
    add_host(database, host_state("here"))
    job_id = Store(database).create(spec(), "alice")[0].job_id
    place(database)
    with subprocess.Popen(["sleep", "600"], preexec_fn=dies_with_parent()) as tree:
        started = start_time(tree.pid)
        assert started is not None
        identity = ProcessIdentity(boot_id(), pid_namespace(), 2**22 + 1, 1)
        claimed = claim(database, job_id, "here", 120, 1, identity)
        assert claimed is not None
        record_of(database, claimed).record_launcher(tree.pid, started)
        expire_lease(database, job_id)
        assert Recovery(database).reap() == [job_id]
        release_predecessors(database, "elsewhere", sqlite_settings.work_dir)
        assert tree.poll() is None
        release_predecessors(database, "here", sqlite_settings.work_dir)
        assert tree.wait(30) == -signal.SIGKILL
    assert Store(database).get(job_id).status is Status.QUEUED
    database.close()


def test_an_expired_lease_stops_a_stale_supervisor_at_its_next_heartbeat(hasty_host: Host) -> None:
    host = hasty_host
    job_id = host.submit(total_epochs=1000)
    supervisor = host.attempt(job_id, SLOW)
    wait_epoch(host, job_id, 1)
    tree = [*host.tree(job_id), *descendants(supervisor.pid)]

    # Between two heartbeats; once more should one come in between. The agent's dispatcher may be the one that sees it.
    def reap() -> bool:
        if host.store.get(job_id).status is Status.RUNNING:
            expire_lease(host.database, job_id)
            Recovery(host.database).reap()
        return host.store.get(job_id).status is Status.QUEUED

    wait_until(reap, "the reaper")
    host.wait_ended(supervisor, timeout_s=20)
    assert alive(tree) == []
    assert host.store.get(job_id).status is Status.QUEUED
    assert totals(host.database) == {
        Counted.REAPED: 1,
        Counted.FENCED_WRITES: 1,
        Counted.SELF_KILLS: 1,
        Counted.DOUBLED_MESSAGES: 0,
    }


def test_a_doubled_message_finds_nothing_to_claim_and_is_counted(host: Host) -> None:
    job_id = host.submit(total_epochs=2)
    host.wait_ended(host.attempt(job_id, SLOW))
    for _ in range(2):
        host.wait_ended(host.attempt(job_id, SLOW))
    assert (host.store.get(job_id).status, host.store.get(job_id).attempt) == (Status.SUCCEEDED, 1)
    assert totals(host.database) == dict.fromkeys(Counted, 0) | {Counted.DOUBLED_MESSAGES: 2}
