"""`python -m worker`: one epochcast worker on this host, until SIGTERM (drain) or SIGINT."""

import fcntl
import os
import sys
from pathlib import Path
from typing import IO

from shared import logs
from shared.processes import hide_memory
from shared.settings import SettingsError, from_environment
from worker.app import AgentKeeper, make_worker_app

EXIT_USAGE = 2


def main() -> int:
    logs.configure("worker")
    try:
        settings = from_environment()
        lock = _lock(settings.work_dir)
    except (SettingsError, OSError) as error:
        print(f"epochcast worker: {error}", file=sys.stderr)
        return EXIT_USAGE
    hide_memory()
    keeper = AgentKeeper()
    code = keeper.start_first()
    if code is not None:
        return code or EXIT_USAGE
    try:
        app, concurrency = make_worker_app(settings, keeper)
        arguments = [
            "--quiet",
            "worker",
            f"--hostname=epochcast@{settings.host_name}",
            f"--queues=host.{settings.host_name}",
            f"--concurrency={concurrency}",
            "--without-gossip",
            "--without-mingle",
            "--loglevel=WARNING",
        ]
        app.worker_main(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0) if not isinstance(exit_.code, str) else 1
    finally:
        keeper.end()
        lock.close()
    return 0


def _lock(work_dir: Path) -> IO[str]:
    """Holds the work folder for as long as this worker lives. Raises OSError with the way out."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        file = (work_dir / "lock").open("a+")
    except OSError as error:
        raise OSError(f"EPOCHCAST_WORK_DIR {work_dir} can't be used: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise OSError(
            f"EPOCHCAST_WORK_DIR {work_dir} is in use by another worker (pid {holder}); "
            "stop that one, or give this one another folder"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


if __name__ == "__main__":
    sys.exit(main())
