"""The attempt's journal: every event on local disk before anything else happens to it.

One writer (the supervisor's loop), several readers with their own place (shipper, recorder): a Redis that is away for
days costs disk, not memory, and what Redis lost is shipped again from here.
"""

import contextlib
import os
import threading
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from epochcast.events import EventId
from shared.event_log import Entry


@dataclass(frozen=True, slots=True)
class Record:
    """An event with the job's fields that it changed (None for a log line)."""

    entry: Entry
    changes: dict[str, Any] | None


class Journal:
    """Records of one generation, seq 1, 2, 3, …; a file of two lines each (header, the event's bytes)."""

    def __init__(self, path: Path, generation: int, owner: str, first_prev: EventId) -> None:
        """`first_prev`: what the generation's first event names as its predecessor."""
        self._file = path.open("wb")
        self._reading = path.open("rb")
        self._generation = generation
        self._owner = owner
        self._first_prev = first_prev
        self._offsets = array("Q")
        self._lock = threading.Lock()

    @property
    def last_seq(self) -> int:
        return len(self._offsets)

    def id_of(self, seq: int) -> EventId:
        return EventId(self._generation, seq)

    def prev_of(self, seq: int) -> EventId:
        """The id before `seq`."""
        return EventId(self._generation, seq - 1) if seq > 1 else self._first_prev

    def append(self, kind: str, status: str, payload: bytes, changes: dict[str, Any] | None) -> int:
        """Adds the next event; returns its seq. Raises OSError (disk full) with nothing added."""
        header = orjson.dumps([kind, status, changes])
        start = os.fstat(self._file.fileno()).st_size
        try:
            self._file.write(b"%s\n%s\n" % (header, payload))
            self._file.flush()
        except OSError:
            self._drop_from(start)
            raise
        with self._lock:
            self._offsets.append(start)
            return len(self._offsets)

    def _drop_from(self, start: int) -> None:
        # What a buffered writer could not write it would try again at the next flush, in the middle of another record.
        path = self._file.name
        with contextlib.suppress(OSError):  # the same full disk, already on its way to the caller
            self._file.close()
        os.truncate(path, start)
        self._file = open(path, "ab")  # noqa: SIM115  (lives as long as the journal)

    def read(self, seq: int, count: int) -> list[Record]:
        """Up to `count` records from `seq` on, oldest first."""
        with self._lock:
            offsets = self._offsets[seq - 1 : seq - 1 + count]
            if not offsets:
                return []
            self._reading.seek(offsets[0])
            return [self._read_one(seq + index) for index in range(len(offsets))]

    def _read_one(self, seq: int) -> Record:
        kind, status, changes = orjson.loads(self._reading.readline())
        payload = self._reading.readline().rstrip(b"\n")
        entry = Entry(self.id_of(seq), self.prev_of(seq), kind, status, self._owner, payload)
        return Record(entry, changes)

    def close(self) -> None:
        self._file.close()
        self._reading.close()
