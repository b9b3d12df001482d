"""A member's way to member 0: what its ranks say, through SQL, at most one row a second and of bounded size.

Log lines are what is dropped when member 0 takes them too slowly; files and failures never are.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import orjson
import structlog

from epochcast.jobs import JobError
from shared.attempt import LeaseLost, StoredFile
from shared.database import DatabaseUnavailable
from shared.member_record import MemberRecord
from worker.lines import Level
from worker.outcome import Cut
from worker.requests import Requests
from worker.shards import StoredShard, to_json

logger = structlog.get_logger(__name__)

INTERVAL_S = 1.0
ROW_BYTES = 256 * 1024
KEPT_BYTES = 1024 * 1024


class Courier:
    """A thread that the training never waits for. `nudge` tells member 0 that there is news."""

    def __init__(self, record: MemberRecord, requests: Requests, nudge: Callable[[], None]) -> None:
        self._record = record
        self._requests = requests
        self._nudge = nudge
        self._lock = threading.Lock()
        self._lines: deque[bytes] = deque()
        self._line_bytes = 0
        self._dropped = 0
        self._files: deque[bytes] = deque()
        self._draining = False
        self._seq = 1
        self._row: bytes | None = None
        self._woken = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def log(self, level: Level, line: str) -> None:
        """A line of the job's log; the oldest goes first when too many wait."""
        message = orjson.dumps({"type": "log", "level": level, "message": line})
        with self._lock:
            self._lines.append(message)
            self._line_bytes += len(message)
            while self._line_bytes > KEPT_BYTES:
                self._line_bytes -= len(self._lines.popleft())
                self._dropped += 1

    def file(self, file: StoredFile) -> None:
        """A file of this host that is in the artifact store by now, for member 0 to enter."""
        self._files.append(orjson.dumps({"type": "file", "file": asdict(file)}))

    def shard(self, shard: StoredShard) -> None:
        """A part of a sharded checkpoint that is in the artifact store by now, for member 0 to collect."""
        self._files.append(orjson.dumps({"type": "shard", "shard": to_json(shard)}))

    def begins(self, checkpoint: object) -> None:
        """Which checkpoint's artifact this host's ranks resume from; None: from none."""
        self._files.append(orjson.dumps({"type": "begins", "from": checkpoint}))

    def drain(self) -> None:
        """This host's worker shuts down: member 0 hears of it at once."""
        self._draining = True
        self._woken.set()

    def fail(self, error: JobError, age_s: float) -> None:
        """The failure of this host, once its processes are gone. Raises DatabaseUnavailable, LeaseLost."""
        self._record.fail(error, age_s)

    def flush(self, timeout_s: float) -> None:
        """After `stop`: what is left, for as long as member 0 takes it; logs may be given up.

        Raises DatabaseUnavailable, LeaseLost.
        """
        deadline = time.monotonic() + timeout_s
        while self._has_more():
            try:
                if self._write():
                    continue
                self._nudge()
            except DatabaseUnavailable:
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                logger.warning("member 0 did not take all that this host said")
                return
            time.sleep(0.2)

    def stop(self) -> None:
        self._ending = True
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ending:
            self._woken.wait(INTERVAL_S)
            self._woken.clear()
            try:
                if self._draining:
                    self._record.drain()
                    self._draining = False
                    self._nudge()
                if self._has_more():
                    self._write()
            except DatabaseUnavailable as error:
                logger.warning("what this host said waits for SQL", error=str(error))
            except LeaseLost:
                self._requests.ask(Cut.LEASE_LOST)
                return
            except Exception:
                logger.exception("the courier failed")
                self._requests.ask(Cut.PLATFORM)
                return

    def _has_more(self) -> bool:
        with self._lock:
            return bool(self._row is not None or self._files or self._lines or self._dropped)

    def _write(self) -> bool:
        """One row. False: member 0 has to take earlier ones first. The same row again after an outage."""
        if self._row is None:
            self._row = self._next_row()
        if not self._record.tell(self._seq, self._row):
            return False
        self._seq += 1
        self._row = None
        return True

    def _next_row(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        with self._lock:
            if self._dropped:
                line = (
                    f"[{self._dropped} log lines of this host dropped: they came faster than they could be passed on]"
                )
                parts.append(orjson.dumps({"type": "log", "level": "WARNING", "message": line}))
                self._dropped = 0
            for queue in (self._files, self._lines):
                while queue and size + len(queue[0]) <= ROW_BYTES:
                    message = queue.popleft()
                    size += len(message)
                    parts.append(message)
                    if queue is self._lines:
                        self._line_bytes -= len(message)
        return b"[" + b",".join(parts) + b"]"


def read_row(payload: bytes) -> list[dict[str, Any]]:
    """The messages of one row, oldest first."""
    messages: list[dict[str, Any]] = orjson.loads(payload)
    return messages
