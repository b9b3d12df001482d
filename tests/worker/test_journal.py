"""The journal keeps every event in order, for readers at any place, and adds nothing half when the disk is full."""

from pathlib import Path

import pytest

from epochcast.events import EventId
from worker.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal", generation=3, owner="alice", first_prev=EventId(2, 9))


def test_records_come_back_as_they_went_in(journal: Journal) -> None:
    assert journal.append("progress", "running", b'{"a": 1}', {"progress": 0.5}) == 1
    assert journal.append("log", "running", '{"m": "ü"}'.encode(), None) == 2
    first, second = journal.read(1, 10)
    assert (first.entry.id, first.entry.prev) == (EventId(3, 1), EventId(2, 9))
    assert (first.entry.payload, first.changes) == (b'{"a": 1}', {"progress": 0.5})
    assert (second.entry.id, second.entry.prev, second.entry.type) == (EventId(3, 2), EventId(3, 1), "log")
    assert journal.read(2, 1) == [second]
    assert journal.read(3, 1) == []
    journal.close()


def test_a_full_disk_adds_nothing_and_later_records_are_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", 1, "alice", EventId(0, 0))
    journal.append("log", "running", b"{}", None)

    class Full:
        """Stands in for the file on a disk without room: takes half and fails."""

        name = str(tmp_path / "journal")

        def __init__(self, file: object) -> None:
            self._real = file

        def fileno(self) -> int:
            return int(self._real.fileno())  # type: ignore[attr-defined]

        def write(self, data: bytes) -> None:
            self._real.write(data[: len(data) // 2])  # type: ignore[attr-defined]
            self._real.flush()  # type: ignore[attr-defined]
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            self._real.close()  # type: ignore[attr-defined]

    journal._file = Full(journal._file)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left"):
        journal.append("log", "running", b'{"lost": true}', None)
    assert journal.last_seq == 1
    journal.append("log", "running", b'{"kept": true}', None)
    assert [record.entry.payload for record in journal.read(1, 9)] == [b"{}", b'{"kept": true}']
    journal.close()
