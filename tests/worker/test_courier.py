"""What a member says reaches member 0 once, in order, and never takes more than its share of memory or SQL."""

from collections.abc import Iterator

import pytest

from shared.attempt import LeaseLost, StoredFile
from shared.database import Database
from shared.gang_record import GangRecord
from shared.member_record import UNTAKEN
from shared.store import Store
from tests.shared.gangs import add_hosts, create_gang, start
from tests.waiting import wait_until
from worker import courier as courier_module
from worker.courier import KEPT_BYTES, ROW_BYTES, Courier, read_row
from worker.outcome import Cut
from worker.requests import Requests


class Sending:
    """A courier and the gang's record that takes from it."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        add_hosts(self.database, 2)
        self.job_id = create_gang(Store(self.database))
        claimed, [self.record] = start(self.database, self.job_id)
        self.gang = GangRecord(self.database, self.job_id, claimed.job.generation)
        self.requests = Requests()
        self.nudges: list[int] = []
        self.courier = Courier(self.record, self.requests, lambda: self.nudges.append(1))
        self._taken: dict[int, int] = {}

    def take(self) -> list[str]:
        """What was said since, as member 0 takes it."""
        _, said = self.gang.look(self._taken)
        for one in said:
            assert len(one.payload) <= ROW_BYTES + 4096
            self._taken[one.member] = one.seq
        self.gang.forget(said)
        return [message.get("message", "file") for one in said for message in read_row(one.payload)]

    def close(self) -> None:
        self.courier.stop()
        self.requests.close()
        self.database.close()


@pytest.fixture
def sending(sqlite_url: str) -> Iterator[Sending]:
    made = Sending(sqlite_url)
    yield made
    made.close()


def test_lines_arrive_in_order_a_second_at_a_time(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier_module, "INTERVAL_S", 0.05)
    sending.courier.start()
    for number in range(50):
        sending.courier.log("INFO", f"line {number}")
    found: list[str] = []

    def all_there() -> bool:
        found.extend(sending.take())
        return len(found) >= 50

    wait_until(all_there, "all lines")
    assert found == [f"line {number}" for number in range(50)]


def test_a_flood_that_nobody_takes_loses_its_oldest_lines_and_says_how_many(sending: Sending) -> None:
    line = "x" * 8000
    count = 3 * KEPT_BYTES // len(line)
    for number in range(count):
        sending.courier.log("INFO", f"{number:06d}{line}")
    sending.courier.file(StoredFile("log", "jobs/1/logs/a.log", 1, "0" * 64))
    found: list[str] = []
    sending.courier.flush(0.0)
    while batch := sending.take():
        found += batch
        sending.courier.flush(0.0)
    kept = [said for said in found if said.endswith("x")]
    assert "file" in found
    assert found[0].startswith("[")
    dropped = int(found[0][1:].split()[0])
    assert len(kept) + dropped == count
    assert kept[-1].startswith(f"{count - 1:06d}"), "the newest are kept"


def test_a_courier_whose_rows_are_not_taken_waits(sending: Sending) -> None:
    for _ in range(UNTAKEN + 2):
        sending.courier.log("INFO", "one")
        sending.courier.flush(0.0)
    assert sending.take() == ["one"] * UNTAKEN
    sending.courier.flush(5.0)
    assert sending.take() == ["one"] * 2
    assert sending.nudges, "it asked member 0 to take"


def test_a_shutdown_is_said_at_once(sending: Sending) -> None:
    sending.courier.start()
    sending.courier.drain()
    wait_until(lambda: sending.gang.look({})[0][1].draining, "the word")
    wait_until(lambda: sending.nudges, "the nudge")


def test_a_courier_whose_row_has_ended_asks_for_the_end(sending: Sending) -> None:
    sending.record.end("lost", None, None)
    sending.courier.log("INFO", "late")
    with pytest.raises(LeaseLost):
        sending.courier.flush(1.0)
    sending.courier.start()
    wait_until(lambda: sending.requests.has(Cut.LEASE_LOST), "the request")
