"""One attempt at a time with real processes: what a script says, how it ends, and what is left of it."""

import signal
import socket
from pathlib import Path

import pytest

from epochcast.events import Complete, Error, EventId, Log, Progress, encode
from epochcast.jobs import Status
from shared.archive import chunk_of
from shared.claims import claim
from shared.event_log import Entry
from shared.rows import progress_message
from tests.shared.records import IDENTITY, record_of
from tests.waiting import wait_until
from tests.worker.host import Host, assert_gapless
from worker.job_state import JobState
from worker.process_tree import start_time
from worker.unix_address import connect_at

REPORTS = """
    import epochcast
    run = epochcast.init()
    for epoch in run.epochs():
        run.report(epoch=epoch, train_loss=1.0 / epoch)
        run.report(epoch=epoch, val_loss=2.0 / epoch)
"""


def test_a_reporting_script_becomes_one_progress_an_epoch_and_a_complete(host: Host) -> None:
    job = host.run(REPORTS, total_epochs=3)
    assert (job.status, job.progress, job.current_epoch) == (Status.SUCCEEDED, 1.0, 3)
    messages = host.messages(job.job_id)
    assert_gapless(host.entries(job.job_id))
    epochs = [message for message in messages if isinstance(message, Progress) and message.current_epoch]
    assert [message.current_epoch for message in epochs] == [1, 2, 3]
    assert epochs[1].metrics == {"train_loss": 0.5, "val_loss": 1.0}
    assert epochs[1].current_loss == 0.5
    assert epochs[1].progress == pytest.approx(2 / 3)
    last = messages[-1]
    assert isinstance(last, Complete)
    assert last.final_metrics == {"train_loss": 1 / 3, "val_loss": 2 / 3}
    assert host.queries.metrics(job.job_id)["val_loss"] == [2.0, 1.0, 2 / 3]
    assert not (host.settings.work_dir / "jobs" / str(job.job_id) / str(job.generation)).exists()


def test_a_script_that_knows_nothing_of_us_runs_and_its_output_is_its_log(host: Host) -> None:
    job = host.run("import sys; print('hello'); print('WARNING: careful', file=sys.stderr)", total_epochs=1)
    assert (job.status, job.progress, job.current_epoch) == (Status.SUCCEEDED, 1.0, 0)
    logs = [message for message in host.messages(job.job_id) if isinstance(message, Log)]
    assert {(log.level, log.message) for log in logs} == {("INFO", "hello"), ("WARNING", "WARNING: careful")}


@pytest.mark.parametrize(
    ("script", "message", "printed"),
    [
        ("import sys; sys.exit(3)", "the script exited with code 3", "printed nothing on stderr"),
        (
            "import argparse; argparse.ArgumentParser(prog='train.py').parse_args(['--epohcs=3'])",
            "the script exited with code 2",
            "train.py: error: unrecognized arguments: --epohcs=3",
        ),
        (
            "import os; os.write(2, b'terminate called after throwing\\n'); os.abort()",
            "the script was killed by SIGABRT",
            "terminate called after throwing",
        ),
        ("import os; os.kill(os.getpid(), 11)", "the script was killed by SIGSEGV", ""),
    ],
)
def test_a_failing_script_ends_in_a_typed_error(host: Host, script: str, message: str, printed: str) -> None:
    job = host.run(script, total_epochs=1)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert (job.error.type, job.error.host) == ("user_error", host.settings.host_name)
    assert job.error_message == message
    if printed:
        assert job.error.detail is not None
        assert printed in job.error.detail
    last = host.messages(job.job_id)[-1]
    assert isinstance(last, Error)
    assert last.error_message == message


def test_cuda_out_of_memory_comes_out_as_the_documents_message(host: Host, tmp_path: Path) -> None:
    (tmp_path / "oom.py").write_text(
        "import torch\n"
        "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of "
        "139.80 GiB of which 1.20 GiB is free.')\n"
    )
    job = host.run(
        f"""
        import sys
        from pathlib import Path
        from worker import trainer
        trainer.script_of = lambda recipe: Path({str(tmp_path / "oom.py")!r})
        sys.exit(trainer.main())
        """,
        total_epochs=1,
    )
    assert (job.status, job.error_message) == (Status.FAILED, "CUDA out of memory")
    assert job.error is not None
    assert job.error.type == "cuda_oom"
    assert job.error.memory is not None
    assert (job.error.memory.requested_gib, job.error.memory.free_gib) == (20.0, 1.2)
    last = host.messages(job.job_id)[-1]
    assert isinstance(last, Error)
    assert last.error_message == "CUDA out of memory"


def test_the_trainer_has_no_credential_of_the_platform(host: Host) -> None:
    job = host.run("import os; print(sorted(n for n in os.environ if n.startswith('EPOCHCAST')))", total_epochs=1)
    assert host.logs(job.job_id) == ["['EPOCHCAST_JOB', 'EPOCHCAST_SOCKET']"]


def test_what_the_script_left_running_ends_with_it(host: Host) -> None:
    job = host.run(
        """
        import subprocess
        daemon = subprocess.Popen(["setsid", "sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(daemon.pid)
        """,
        total_epochs=1,
    )
    assert job.status is Status.SUCCEEDED
    assert not Path(f"/proc/{host.logs(job.job_id)[0]}").exists()


def test_a_flood_and_an_endless_line_are_contained_and_said(host: Host) -> None:
    job = host.run(
        """
        import sys
        sys.stdout.write("x" * 30_000_000)
        sys.stdout.write("\\n" + "".join(f"line {n}\\n" for n in range(50_000)))
        sys.stdout.flush()
        sys.stdout.buffer.write(b"\\xff\\x1b[31mred\\x1b[0m\\n")
        """,
        total_epochs=1,
    )
    assert job.status is Status.SUCCEEDED
    logs = host.logs(job.job_id)
    assert logs[0].endswith("[line cut at 8 KiB]")
    assert len(logs[0]) < 9000
    assert len(logs) < 20_000
    assert_gapless(host.entries(job.job_id))
    [log] = [row for row in host.queries.artifacts(job.job_id) if row["kind"] == "log"]
    assert log["bytes"] > 30_000_000


def test_a_script_past_its_time_is_ended_and_says_which_limit(host: Host) -> None:
    job = host.run("import time; time.sleep(600)", total_epochs=1, max_runtime_s=1.0)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert (job.error.type, job.error_message) == ("timeout", "ran for longer than max_runtime_s = 1 s")


def test_a_script_that_reports_nothing_is_ended_only_when_asked_to(host: Host) -> None:
    job = host.run("import time; time.sleep(600)", total_epochs=1, stall_timeout_s=1.0)
    assert job.error is not None
    assert job.error.type == "stalled"


NAN = "import epochcast\nrun = epochcast.init()\nfor e in run.epochs(): run.report(epoch=e, train_loss=float('nan'))"


def test_nan_is_null_and_named_and_ends_the_job_only_if_asked(host: Host) -> None:
    job = host.run(NAN, total_epochs=2)
    assert job.status is Status.SUCCEEDED
    epochs = [m for m in host.messages(job.job_id) if isinstance(m, Progress) and m.current_epoch]
    assert [(m.current_loss, m.non_finite) for m in epochs] == [(None, ["train_loss"])] * 2
    assert b"NaN" not in b"".join(entry.payload for entry in host.entries(job.job_id))
    strict = host.run(NAN + "; __import__('time').sleep(1)", total_epochs=100, fail_on_non_finite=True)
    assert strict.status is Status.FAILED
    assert strict.error is not None
    assert (strict.error.type, strict.error_message) == ("diverged", "train_loss became NaN or infinite")


def test_a_failing_script_is_tried_again_as_often_as_allowed(host: Host) -> None:
    job_id = host.submit(total_epochs=1, max_restarts=1)
    host.wait_ended(host.attempt(job_id, "raise SystemExit(1)"))
    waiting = host.store.get(job_id)
    assert (waiting.status, waiting.attempt) == (Status.QUEUED, 1)
    host.wait_placed(job_id)
    host.wait_ended(host.attempt(job_id, "raise SystemExit(1)"))
    assert host.store.get(job_id).status is Status.FAILED
    assert [row["outcome"] for row in host.queries.attempts(job_id)] == ["failed", "failed"]
    assert_gapless(host.entries(job_id))


def test_a_stranger_is_refused_at_the_attempts_socket(host: Host) -> None:
    job_id = host.submit(total_epochs=1)
    supervisor = host.attempt(job_id, "import os, time; print(os.environ['EPOCHCAST_SOCKET']); time.sleep(600)")
    wait_until(lambda: host.logs(job_id), "the socket's path", timeout_s=20)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        connect_at(stranger, Path(host.logs(job_id)[0]))
        stranger.settimeout(30)
        assert stranger.recv(1) == b"", "the supervisor closes a connection from outside its tree"
    host.store.request_stop(job_id)
    host.wait_ended(supervisor)


def test_odd_packets_are_passed_over_and_said_and_the_job_goes_on(host: Host) -> None:
    job = host.run(
        """
        import json, os, socket
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        folder = os.open(os.path.dirname(os.environ["EPOCHCAST_SOCKET"]), os.O_PATH)
        connection.connect(f"/proc/self/fd/{folder}/attempt.sock")
        digest = "0" * 64
        for packet in [
            {"type": "resumed", "epoch": -5},
            {"type": "checkpoint", "file": "x" * 300, "epoch": 1, "bytes": 1, "sha256": digest},
            {"type": "checkpoint", "file": "a\\nb", "epoch": 1, "bytes": 1, "sha256": digest},
            {"type": "checkpoint", "file": "../../etc/passwd", "epoch": 1, "bytes": 1, "sha256": digest},
            {"type": "checkpoint", "file": "c", "epoch": 2**63, "bytes": 1, "sha256": digest},
            {"type": "report", "epoch": 1, "metrics": {"a": "text"}},
            {"type": "x" * 50_000},
            {"type": "log", "level": "INFO", "message": "m" * 30_000},
            [1, 2, 3],
        ]:
            connection.send(json.dumps(packet).encode())
        connection.send(b"\\xff not json")
        """,
        total_epochs=1,
    )
    assert job.status is Status.SUCCEEDED
    lines = host.logs(job.job_id)
    assert len([line for line in lines if "passed over" in line]) == 5
    assert len([line for line in lines if "output folder" in line]) == 2
    assert max(len(line) for line in lines) < 8300
    assert len(host.queries.attempts(job.job_id)) == 1


def test_the_last_words_of_a_process_that_is_gone_already_count(host: Host) -> None:
    job_id = host.submit(total_epochs=1)
    # The supervisor is kept from reading until the script and its tree are gone.
    supervisor = host.attempt(
        job_id,
        """
        import os, signal, time
        import epochcast
        print("here", flush=True)
        while not os.path.exists("go"):
            time.sleep(0.01)
        run = epochcast.init()
        run.fail({"type": "cuda_oom", "message": "CUDA out of memory"})
        os._exit(1)
        """,
    )
    host.wait_logged(job_id, "here")
    tree = host.tree(job_id)
    supervisor.send_signal(signal.SIGSTOP)
    work = host.settings.work_dir / "jobs" / str(job_id) / "2" / "work"
    (work / "go").touch()
    wait_until(lambda: all(start_time(pid) is None for pid in tree), "the tree's end", timeout_s=20)
    supervisor.send_signal(signal.SIGCONT)
    host.wait_ended(supervisor)
    job = host.store.get(job_id)
    assert (job.status, job.error_message) == (Status.FAILED, "CUDA out of memory")


def test_checkpoints_are_committed_while_a_flood_of_logs_goes_on(host: Host) -> None:
    job_id = host.submit(total_epochs=1)
    supervisor = host.attempt(
        job_id,
        """
        import time
        import epochcast
        run = epochcast.init()
        run.state(done={"a": 1})
        for epoch in run.epochs():
            run.report(epoch=1, loss=1.0)
            run.checkpoint()
            while not run.stopping:
                print("x" * 100, flush=True)
                time.sleep(0.002)
        """,
    )
    wait_until(lambda: host.queries.artifacts(job_id), "the committed checkpoint", timeout_s=20)
    host.store.request_stop(job_id)
    host.wait_ended(supervisor)
    assert host.store.get(job_id).status is Status.STOPPED


def test_a_restart_after_a_lost_backlog_tells_the_whole_story(host: Host) -> None:
    """The earlier attempt died between its end in SQL and its last events in Redis; nobody has them but SQL."""
    job_id = host.submit(total_epochs=10)
    claimed = claim(host.database, job_id, host.settings.host_name, 120, 1, IDENTITY)
    assert claimed is not None
    record = record_of(host.database, claimed)
    state = JobState(claimed.job)
    entries = [
        Entry(
            EventId(2, seq), EventId(2, seq - 1), "log", "running", "alice", encode(state.log(f"2-{seq}", "INFO", "x"))
        )
        for seq in (2, 3)
    ]
    record.record(None, [], chunk_of(entries))
    record.finish(Status.STOPPED, seq=4, prev=EventId(2, 3), make_event=progress_message, lease_s=60, outcome="stopped")
    host.store.restart(job_id)
    host.wait_placed(job_id)
    host.wait_ended(host.attempt(job_id, REPORTS))
    assert host.store.get(job_id).status is Status.SUCCEEDED
    ids = [str(entry.id) for entry in host.entries(job_id)]
    assert ids[:7] == ["1-1", "2-1", "2-2", "2-3", "2-4", "3-1", "4-1"]
    assert_gapless(host.entries(job_id))


def test_bad_data_is_one_line_for_the_user_and_no_traceback_of_ours(host: Host, tmp_path: Path) -> None:
    parameters = {"dataset": "npz", "data_dir": str(tmp_path / "nowhere")}
    job = host.run(hyperparameters=parameters, total_epochs=1)
    assert job.error is not None
    assert job.error.type == "user_error"
    assert "nowhere" in (job.error_message or "")
    assert (job.error.detail, job.error.traceback) == (None, None)
    [log] = [message for message in host.messages(job.job_id) if isinstance(message, Log)]
    assert log.level == "ERROR"
    assert "nowhere" in log.message


def test_an_attempt_says_which_checkpoint_it_has_loaded_and_not_which_it_was_offered(host: Host) -> None:
    script = """
        import torch
        import epochcast
        run = epochcast.init()
        {begin}
        for epoch in range(1, 4):
            run.report(epoch=epoch, loss=1.0)
            run.checkpoint(epoch=epoch)
            if {fails} and epoch == 2:
                raise RuntimeError("half way")
        run.save_model(torch.nn.Linear(1, 1))
    """
    job_id = host.submit(total_epochs=3)
    host.wait_ended(host.attempt(job_id, script.format(begin="", fails=True)))
    for begin, fails in (("", True), ("run.load()", False)):
        newest = [row["id"] for row in host.queries.artifacts(job_id) if row["kind"] == "checkpoint"][-1]
        host.store.restart(job_id)
        host.wait_placed(job_id)
        host.wait_ended(host.attempt(job_id, script.format(begin=begin, fails=fails)))
    assert [row["resumed_epoch"] for row in host.queries.attempts(job_id)] == [None, None, 2]
    ((model,), _) = host.queries.models(None)
    assert model["lineage"]["resumed_from_checkpoint"] == newest
