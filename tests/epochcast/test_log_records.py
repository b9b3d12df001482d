"""Python's `logging` inside a job: records reach the job's log with their level, and nobody's own set-up is touched."""

import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.listening import Attempt, finished, listening
from tests.waiting import wait_until

HEAD = """
import logging
import epochcast
logger = logging.getLogger("mine")
"""


def run(folder: Path, script: str) -> tuple[list[tuple[str, str]], str]:
    """(level, message) of the lines that came over the socket, and what went to stdout and stderr."""
    with listening(folder) as attempt:
        code, output = finished(start(attempt, script))
        attempt.settle()
    assert code == 0, output
    return [(line["level"], line["message"]) for line in attempt.said("log")], output


def start(attempt: Attempt, script: str, **environment: Any) -> "subprocess.Popen[str]":
    file = attempt.folder / "script.py"
    file.write_text(HEAD + textwrap.dedent(script))
    return attempt.start(str(file), **environment)


def test_records_keep_their_levels(tmp_path: Path) -> None:
    script = """
        logger.setLevel("DEBUG")
        epochcast.init()
        for level in (10, 15, 20, 30, 40, 50, 60):
            logger.log(level, "level %d", level)
    """
    lines, output = run(tmp_path / "a", script)
    levels = ["DEBUG", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "CRITICAL"]
    assert lines == [
        (level, f"level {number}") for level, number in zip(levels, (10, 15, 20, 30, 40, 50, 60), strict=True)
    ]
    assert output == ""


def test_record_of_an_exception_has_its_traceback_in_one_line_of_the_log(tmp_path: Path) -> None:
    script = """
        epochcast.init()
        try:
            1 / 0
        except ZeroDivisionError:
            logger.exception("it broke")
    """
    [(level, message)], _ = run(tmp_path / "a", script)
    assert level == "ERROR"
    assert message.startswith("it broke\nTraceback")
    assert message.endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize("order", ["logging.basicConfig(level='INFO'); epochcast.init()",
                                   "epochcast.init(); logging.basicConfig(level='INFO')"])  # fmt: skip
def test_script_that_sets_up_logging_keeps_its_own_set_up(tmp_path: Path, order: str) -> None:
    lines, output = run(tmp_path / "a", f"{order}\nlogger.info('mine'); assert len(logging.root.handlers) == 1")
    assert lines == []
    assert output == "INFO:mine:mine\n"


def test_script_can_name_the_handler_in_its_own_set_up(tmp_path: Path) -> None:
    script = """
        from epochcast.training import LogHandler
        logging.basicConfig(level="INFO", format="%(name)s: %(message)s", handlers=[LogHandler()])
        logger.info("before")
        epochcast.init()
        logger.info("after")
    """
    lines, output = run(tmp_path / "a", script)
    assert lines == [("INFO", "mine: after")]
    assert output.strip().endswith("before")


def test_forked_helper_without_a_run_writes_to_stderr(tmp_path: Path) -> None:
    script = """
        import os
        epochcast.init()
        if os.fork() == 0:
            logger.warning("from the helper")
            os._exit(0)
        os.wait()
        logger.warning("from the script")
    """
    lines, output = run(tmp_path / "a", script)
    assert lines == [("WARNING", "from the script")]
    assert output == "from the helper\n"


def test_record_after_the_runs_end_goes_to_stderr_and_ends_nothing(tmp_path: Path) -> None:
    lines, output = run(tmp_path / "a", "epochcast.init().close(); logger.warning('too late'); print('went on')")
    assert lines == []
    assert output == "too late\nwent on\n"


def test_record_that_the_supervisor_no_longer_takes_ends_nothing(tmp_path: Path) -> None:
    with listening(tmp_path / "a") as attempt:
        gone = tmp_path / "gone"
        process = start(
            attempt,
            f"""
            import pathlib, time
            epochcast.init().log("ready")
            while not pathlib.Path({str(gone)!r}).exists():
                time.sleep(0.01)
            logger.warning("unheard")
            print("went on")
            """,
        )
        wait_until(lambda: attempt.said("log"), "the connection")
        attempt.hang_up()
        gone.touch()
        code, output = finished(process)
    assert code == 0, output
    assert output.endswith("went on\n")
    assert "Disconnected" in output


def test_outside_a_job_logging_is_as_it_always_is(tmp_path: Path) -> None:
    with listening(tmp_path / "a") as attempt:
        file = attempt.folder / "script.py"
        file.write_text(HEAD + "epochcast.init()\nlogger.info('no')\nlogger.warning('yes')\n")
        process = attempt.start(
            "-c", f"import os, runpy; del os.environ['EPOCHCAST_SOCKET']; runpy.run_path({str(file)!r})"
        )
        code, output = finished(process)
    assert (code, output) == (0, "yes\n")
