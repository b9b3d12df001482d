"""The allocator's snapshot is bounded: the newest part of a long history stays, and nothing but the file is lost."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from worker import oom_snapshot
from worker.oom_snapshot import NoSnapshot


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What torch says of a GPU's allocator, for machines without one."""
    trace = [{"action": "alloc", "size": number, "frames": [f"line {number}" * 20]} for number in range(1000)]
    content: dict[str, Any] = {"segments": [{"address": 0, "blocks": []}], "device_traces": [trace, []]}
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: content)
    return content


def test_a_history_that_is_too_long_keeps_its_newest_part(allocator: dict[str, Any], tmp_path: Path) -> None:
    whole = len(pickle.dumps(allocator))
    told = oom_snapshot.write(tmp_path, 3, max_bytes=whole // 3)
    assert told["file"] == "oom-snapshot-3.pickle"
    assert whole // 6 < told["bytes"] <= whole // 3
    kept = pickle.loads((tmp_path / told["file"]).read_bytes())
    assert [entry["size"] for entry in kept["device_traces"][0]] == list(range(750, 1000))
    assert kept["segments"] == [{"address": 0, "blocks": []}]


def test_a_state_that_is_too_large_by_itself_leaves_no_file(allocator: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(NoSnapshot, match="over 10 bytes"):
        oom_snapshot.write(tmp_path, 0, max_bytes=10)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_recorded_unless_somebody_asked() -> None:
    assert not oom_snapshot.is_recorded()
