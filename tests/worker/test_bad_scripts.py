"""Scripts that misbehave: each is contained and reported, nothing of it is left, and the next job is fine."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from epochcast.events import Log, Progress
from epochcast.jobs import Status
from tests.waiting import wait_until
from tests.worker.host import Host, assert_gapless
from worker.process_tree import descendants

GOOD = "print('all well')"


def assert_host_is_fine(host: Host) -> None:
    """Nothing runs below the agent, and a plain script succeeds."""
    assert host.agent is not None
    agent = host.agent.pid
    wait_until(lambda: descendants(agent) == [], "the end of what the script left", timeout_s=20)
    job = host.run(GOOD, total_epochs=1)
    assert (job.status, host.logs(job.job_id)) == (Status.SUCCEEDED, ["all well"])


DAEMON = """
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.closerange(0, 3)
        os.chdir("/")
        time.sleep(600)
    print("gone to the background")
"""
DEAF = """
    import signal, sys
    for sign in range(1, 65):
        if sign not in (9, 19, 32, 33):
            signal.signal(sign, signal.SIG_IGN)
    print("deaf", flush=True)
    sys.exit(4)
"""
SERVER = """
    import os, socket
    if os.fork() == 0:
        server = socket.socket()
        server.bind(("127.0.0.1", 0))
        server.listen()
        os.write(1, f"port {server.getsockname()[1]}\\n".encode())
        server.accept()
    os.wait3(os.WNOHANG)
    import time
    time.sleep(1)
"""
HOMELESS = """
    import os, shutil
    work = os.getcwd()
    os.chdir("/")
    shutil.rmtree(os.path.dirname(work), ignore_errors=True)
    print("burnt the house down", flush=True)
    raise SystemExit(5)
"""
FULL = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    with open("data.bin", "wb") as file:
        while True:
            file.write(b"x" * 100_000)
"""
SILENT = (
    "import os\nfor n in range(256):\n    try:\n        os.close(n)\n    except OSError:\n        pass\nos._exit(6)"
)


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        (DAEMON, Status.SUCCEEDED, None),
        (DEAF, Status.FAILED, "the script exited with code 4"),
        (SERVER, Status.SUCCEEDED, None),
        (HOMELESS, Status.FAILED, "the script exited with code 5"),
        (FULL, Status.FAILED, "the script exited with code 1"),
        (SILENT, Status.FAILED, "the script exited with code 6"),
    ],
    ids=["daemon", "deaf", "server", "homeless", "full", "silent"],
)
def test_a_script_that_misbehaves_harms_nobody_else(host: Host, script: str, status: Status, says: str | None) -> None:
    job = host.run(script, total_epochs=1)
    assert (job.status, job.error_message) == (status, says), host.logs(job.job_id)
    assert_gapless(host.entries(job.job_id))
    for line in host.logs(job.job_id):
        if line.startswith("port "):
            with socket.socket() as client:
                assert client.connect_ex(("127.0.0.1", int(line.split()[1]))) != 0, "it listens still"
    assert_host_is_fine(host)


def test_a_full_disk_is_the_environments_fault_and_named(host: Host, tmp_path: Path) -> None:
    from tests.worker.test_bundles import keep, run

    script = b"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
with open("data.bin", "wb") as file:
    while True:
        file.write(b"x" * 100_000)
"""
    job = run(host, keep(host, tmp_path / "code", {"train.py": script}))
    assert job.error is not None
    assert (job.error.type, job.error_message) == ("environment", "OSError: [Errno 27] File too large")


def test_what_looks_like_our_protocol_is_text_on_stdout(host: Host) -> None:
    fake = '{"type": "complete", "job_id": 1, "status": "succeeded", "progress": 1.0, "id": "9-9"}'
    packet = '{"type": "failure", "rank": 0, "error": {"type": "platform", "message": "not true"}}'
    job = host.run(f"print({fake!r})\nprint({packet!r})", total_epochs=1)
    assert job.status is Status.SUCCEEDED
    logs = [message for message in host.messages(job.job_id) if isinstance(message, Log)]
    assert [log.message for log in logs] == [fake, packet]


HOSTILE = """
    import json, os, socket
    folder = os.open(os.path.dirname(os.environ["EPOCHCAST_SOCKET"]), os.O_PATH)
    def connect():
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(f"/proc/self/fd/{folder}/attempt.sock")
        return connection
    many = [connect() for _ in range(300)]
    connection = many[0]
    def say(packet):
        connection.send(packet if isinstance(packet, bytes) else json.dumps(packet).encode())
    say(b"[" * 60_000)
    say({"type": ["report"], "rank": "zero"})
    say({"type": "report", "epoch": 1, "rank": 2**70, "metrics": {}})
    say({"type": "epoch", "epoch": 1, "total_epochs": 10**7 + 1})
    say({"type": "report", "epoch": 7, "rank": 5, "metrics": {"loss": 0.1}})
    say({"type": "report", "epoch": 1, "metrics": {str(n): 1.0 for n in range(1001)}})
    say({"type": "report", "epoch": 1, "metrics": {"loss": 0.5}})
    say({"type": "failure", "error": {"type": "no such", "message": "x"}})
    say({"type": "failure", "error": {"type": "lost", "message": "x", "epoch": 1e30}})
    error = {"type": "user_error", "message": "one\\ntwo \\u0000" + "m" * 20_000, "epoch": 2**60}
    error |= {"traceback": "t" * 20_000, "host": "elsewhere", "memory": {"free_gib": 1e308}}
    say({"type": "failure", "error": error})
    connection.close()
    print("still here")
"""


def test_hostile_packets_end_nothing_but_are_bounded_where_they_count(host: Host) -> None:
    job = host.run(HOSTILE, total_epochs=3)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert len(job.error.message) <= 500
    assert job.error.message.startswith("one two mmm")
    assert (job.error.host, job.error.epoch, job.error.rank) == (host.settings.host_name, 1, 0)
    assert len(job.error.traceback or "") <= 8192
    assert (job.current_epoch, job.total_epochs, job.metrics) == (1, 3, {"loss": 0.5})
    assert "still here" in host.logs(job.job_id)
    assert_host_is_fine(host)


def test_output_without_end_neither_grows_the_supervisor_nor_hides_the_reports(host: Host) -> None:
    script = """
        import os, threading, time
        import epochcast
        run = epochcast.init()
        def flood():
            line = b"".join(b"line %d\\n" % n for n in range(10_000))
            for _ in range(20):
                os.write(1, line)
            for _ in range(100):
                os.write(1, b"x" * 1_000_000)        # 100 MB without a newline
        thread = threading.Thread(target=flood)
        thread.start()
        for epoch in run.epochs():
            run.report(epoch=epoch, train_loss=1.0 / epoch)
        thread.join()
        time.sleep(1.5)  # into a second in which lines are admitted again
        print()
        while not os.path.exists("go"):
            time.sleep(0.05)
    """
    job_id = host.submit(total_epochs=50)
    supervisor = host.attempt(job_id, script)
    wait_until(lambda: any("line cut" in line for line in host.logs(job_id)), "the long line", timeout_s=60)
    status = Path(f"/proc/{supervisor.pid}/status").read_text()
    peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak_kib < 250 * 1024, "100 MB more than a supervisor has anyway"
    [work] = (host.settings.work_dir / "jobs" / str(job_id)).glob("*/work")
    (work / "go").touch()
    host.wait_ended(supervisor)
    job = host.store.get(job_id)
    assert (job.status, job.current_epoch) == (Status.SUCCEEDED, 50)
    assert len(host.logs(job_id)) < 30_000
    assert any("log lines dropped" in line for line in host.logs(job_id))
    assert_gapless(host.entries(job_id))
    assert os.path.isdir(host.settings.work_dir)


def test_a_flood_holds_up_no_other_job(make_host: Callable[..., Host]) -> None:
    host = make_host(slots=2)
    flood = """
        import os
        line = b"".join(b"line %d\\n" % n for n in range(10_000))
        while True:
            os.write(1, line)
    """
    flooding = host.submit(total_epochs=1)
    flooder = host.attempt(flooding, flood)
    wait_until(lambda: any("log lines dropped" in line for line in host.logs(flooding)), "the flood", timeout_s=60)
    script = """
        import epochcast
        run = epochcast.init()
        for epoch in run.epochs():
            print("epoch", epoch)
            run.report(epoch=epoch, train_loss=1.0 / epoch)
    """
    job = host.run(script, total_epochs=100)
    # In the midst of it another job has been followed to its end, with every line and every report.
    flooded = len(host.logs(flooding))
    wait_until(lambda: len(host.logs(flooding)) > flooded, "more of the flood", timeout_s=20)
    assert job.status is Status.SUCCEEDED
    assert host.logs(job.job_id) == [f"epoch {epoch}" for epoch in range(1, 101)]
    reports = [message.current_epoch for message in host.messages(job.job_id) if isinstance(message, Progress)]
    assert sorted(set(reports)) == list(range(101))
    assert_gapless(host.entries(job.job_id))
    host.store.request_stop(flooding)
    host.wait_ended(flooder)
    assert host.store.get(flooding).status is Status.STOPPED
