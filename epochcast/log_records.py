"""Python's `logging` in a job: records become lines of the job's log with the level they were made with."""

import logging

from epochcast.run import Level


class LogHandler(logging.Handler):
    """Sends records to this process's run. Where there is none, such as in a loader's worker, to `otherwise`.

    A script that sets up logging itself names it: `logging.basicConfig(level="INFO", handlers=[LogHandler()])`.
    """

    def __init__(self, level: int | str = logging.NOTSET, otherwise: logging.Handler | None = None) -> None:
        super().__init__(level)
        self._otherwise = otherwise or logging.StreamHandler()

    def emit(self, record: logging.LogRecord) -> None:
        from epochcast.training import current_run

        run = current_run()
        if run is None:
            self._otherwise.handle(record)
            return
        try:
            run.log(self.format(record), level_of(record.levelno))
        except Exception:  # as every handler of the library: a record that can't be sent must not end a training
            self.handleError(record)


def install() -> None:
    """Records that no handler of the script's takes go to the run, instead of to stderr without their level.

    Not on the root logger: `logging.basicConfig()` does nothing when that has a handler, and a script that calls it
    after `epochcast.init()` would lose its own set-up.
    """
    last = logging.lastResort
    if not isinstance(last, LogHandler):
        logging.lastResort = LogHandler(otherwise=last)


def level_of(number: int) -> Level:
    """The named level at or below `number`."""
    if number >= logging.CRITICAL:
        return "CRITICAL"
    if number >= logging.ERROR:
        return "ERROR"
    if number >= logging.WARNING:
        return "WARNING"
    return "INFO" if number >= logging.INFO else "DEBUG"
