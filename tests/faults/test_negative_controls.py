"""The checker sees what the guards prevent: each guard is switched off for one attempt, and its damage is found.

Beside every attempt without the guard runs one that has it, through the same fault: there the checker finds nothing.
"""

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from epochcast.jobs import Status
from shared import event_log
from shared.database import Database
from shared.fleet import Fleet
from shared.recovery import Recovery
from shared.settings import Settings
from tests.api.training import Training
from tests.faults.checker import Checker
from tests.faults.findings import Finding
from tests.faults.steps import read_steps, with_steps
from tests.shared.records import add_host, expire_lease, host_state
from tests.waiting import wait_until
from tests.worker.conftest import HASTY
from tests.worker.host import Host
from tests.worker.test_recovery import freeze_between_writes

TICKING = """
import epochcast
run = epochcast.init()
for epoch in range(1, run.total_epochs + 1):
    note_step(epoch)
    time.sleep(0.05)
    if epoch <= 20:  # more would wait for a supervisor that is frozen
        run.report(epoch=epoch, train_loss=1.0 / epoch)
"""


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    return tmp_path / "steps"


def broken(findings: list[Finding], job_id: int) -> list[str]:
    return [str(finding) for finding in findings if finding.job_id == job_id]


def frozen_attempts(host: Host, steps: Path, guard: str) -> tuple[int, int, "list[subprocess.Popen[bytes]]"]:
    """Two jobs of which the second's attempt has no such guard; both supervisors are frozen, their trainers not."""
    script = with_steps(TICKING, steps)
    guarded, unguarded = (host.submit(total_epochs=10_000) for _ in range(2))
    supervisors = [host.attempt(guarded, script), host.attempt(unguarded, script, hurt=f"{guard}=off")]
    for job_id in (guarded, unguarded):
        wait_steps(host, steps, job_id, 5)
        host.launcher(job_id)
    for supervisor in supervisors:
        freeze_between_writes(host, supervisor)
    return guarded, unguarded, supervisors


def wait_steps(host: Host, steps: Path, job_id: int, count: int, attempt: int = 1) -> None:
    def taken() -> bool:
        return sum(step.attempt == attempt for step in read_steps(steps, job_id)) >= count

    what = f"{count} steps of attempt {attempt} of job {job_id}\n{host.output}"
    wait_until(taken, what, timeout_s=40)


def wait_taken_back(host: Host, job_ids: tuple[int, ...]) -> None:
    def all_taken_back() -> bool:
        return all(host.store.get(job_id).generation >= 3 for job_id in job_ids)

    wait_until(all_taken_back, f"the requeue of jobs {job_ids}\n{host.output}", timeout_s=40)


def end_all(host: Host, job_ids: tuple[int, ...], attempts: "list[subprocess.Popen[bytes]]") -> None:
    for job_id in job_ids:
        host.store.request_stop(job_id)
    for attempt in attempts:
        host.wait_ended(attempt)
    wait_until(lambda: not host.store.unannounced(), "the last announcement")


def test_without_the_fence_a_stale_attempt_writes_and_the_checker_sees_it(
    make_host: Callable[..., Host], steps: Path
) -> None:
    host = make_host(**HASTY, slots=4)
    guarded, unguarded, frozen = frozen_attempts(host, steps, "fence")
    for job_id in (guarded, unguarded):
        expire_lease(host.database, job_id)
    wait_taken_back(host, (guarded, unguarded))
    again = []
    for job_id in (guarded, unguarded):
        host.wait_placed(job_id)
        again.append(host.attempt(job_id, with_steps(TICKING, steps)))
        wait_steps(host, steps, job_id, 5, attempt=2)
    for supervisor in frozen:
        supervisor.send_signal(signal.SIGCONT)
    for supervisor in frozen:
        host.wait_ended(supervisor)
    end_all(host, (guarded, unguarded), again)
    findings = Checker(host.settings, steps).check(ended=False)
    assert broken(findings, guarded) == []
    assert any("after the record moved on" in said for said in broken(findings, unguarded)), findings


def test_without_the_licence_two_attempts_train_at_once_and_the_checker_sees_it(
    make_host: Callable[..., Host], steps: Path, tmp_path: Path
) -> None:
    first = make_host(**HASTY, slots=4, host_name="host-a", work_dir=tmp_path / "a")
    guarded, unguarded, frozen = frozen_attempts(first, steps, "licence")
    Fleet(first.database).set_draining("host-a", True)
    second = make_host(**HASTY, slots=4, host_name="host-b", work_dir=tmp_path / "b")
    wait_taken_back(first, (guarded, unguarded))
    again = []
    for job_id in (guarded, unguarded):
        second.wait_placed(job_id)
        again.append(second.attempt(job_id, with_steps(TICKING, steps)))
        wait_steps(second, steps, job_id, 5, attempt=2)
    for supervisor in frozen:
        supervisor.send_signal(signal.SIGCONT)
        first.wait_ended(supervisor)
    end_all(second, (guarded, unguarded), again)
    findings = Checker(first.settings, steps).check(ended=False)
    assert broken(findings, guarded) == []
    assert any("after a later one had begun" in said for said in broken(findings, unguarded)), findings


# --- the event log's refusal of ids

# What anybody would write first: the stream numbers its entries by itself, and takes whatever comes.
CREDULOUS = """
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[10], '*',
  'p', ARGV[3], 't', ARGV[4], 's', ARGV[5], 'o', ARGV[6], 'g', ARGV[7], 'b', ARGV[11])
redis.call('SET', KEYS[2], ARGV[12])
redis.call('SET', KEYS[3], ARGV[13])
return {'ok', ARGV[1] .. '-' .. ARGV[2]}
"""


@pytest.fixture
def database(sqlite_settings: Settings) -> Iterator[Database]:
    opened = Database(sqlite_settings.database_url.get_secret_value())
    add_host(opened, host_state("test-host"))
    yield opened
    opened.close()


def zombie_story(database: Database, settings: Settings) -> int:
    """An append that is tried twice; then the job is taken back, and its former owner goes on."""
    training = Training(database, settings.events_redis_url)
    training.announce()
    training.start()
    [*_, last] = training.report(3)
    training.append(last)
    training.archive()
    expire_lease(database, training.job_id)
    assert Recovery(database).reap() == [training.job_id]
    training.announce()
    training.last = last.id
    training.report(1)
    training.store.request_stop(training.job_id)
    training.announce()
    assert training.job.status is Status.STOPPED
    training.close()
    return training.job_id


def test_without_the_refusal_of_ids_the_log_holds_repeats_and_zombies_and_the_checker_sees_it(
    database: Database, sqlite_settings: Settings, steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = zombie_story(database, sqlite_settings)
    with monkeypatch.context() as patched:
        patched.setattr(event_log, "_APPEND", CREDULOUS)
        unguarded = zombie_story(database, sqlite_settings)
    findings = Checker(sqlite_settings, steps).check()
    assert broken(findings, guarded) == []
    said = "\n".join(broken(findings, unguarded))
    for damage in ("a repeat", "a stale event", "under the id"):
        assert damage in said, f"{damage} was not seen in:\n{said}"
