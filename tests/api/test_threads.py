"""Reads that are made together: fresh for everybody who asks, failed for those alone who asked for them."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from api.threads import Batches
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


class Record:
    """Says in which read a key was read, and takes its time about it while it is held."""

    def __init__(self) -> None:
        self.reads: list[list[int]] = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.error: Exception | None = None

    def read(self, keys: Sequence[int]) -> dict[int, str]:
        self.reads.append(sorted(keys))
        number = len(self.reads)
        assert self.goes_on.wait(30)
        if self.error is not None:
            raise self.error
        return {key: f"read {number}" for key in keys if key > 0}


async def until(record: Record, reads: int) -> None:
    await asyncio.to_thread(wait_until, lambda: len(record.reads) == reads, f"{reads} reads")


async def test_who_asks_during_a_read_gets_the_next_one_together_with_all_others() -> None:
    record = Record()
    batches = Batches(record.read)
    record.goes_on.clear()
    first = asyncio.create_task(batches.get(1))
    await until(record, 1)
    later = [asyncio.create_task(batches.get(key)) for key in (1, 2, 2, 3)]
    await asyncio.sleep(0.05)
    assert not any(one.done() for one in (first, *later))
    record.goes_on.set()
    assert await first == "read 1"
    assert await asyncio.gather(*later) == ["read 2"] * 4
    assert record.reads == [[1], [1, 2, 3]]
    assert await batches.get(1) == "read 3"


async def test_what_is_not_there_is_none() -> None:
    batches = Batches(Record().read)
    missing, there = await asyncio.gather(batches.get(-1), batches.get(1))
    assert (missing, there) == (None, "read 1")


async def test_a_crowd_is_read_in_several_turns() -> None:
    record = Record()
    batches = Batches(record.read)
    found = await asyncio.gather(*(batches.get(key) for key in range(1, 251)))
    assert [len(read) for read in record.reads] == [100, 100, 50]
    assert found == ["read 1"] * 100 + ["read 2"] * 100 + ["read 3"] * 50


async def test_a_failed_read_fails_those_who_asked_for_it_and_nobody_after() -> None:
    record = Record()
    batches = Batches(record.read)
    record.error = OSError("away")
    for one in await asyncio.gather(batches.get(1), batches.get(2), return_exceptions=True):
        assert isinstance(one, OSError)
    record.error = None
    assert await batches.get(1) == "read 2"


async def test_one_who_gives_up_takes_nothing_from_the_others() -> None:
    record = Record()
    batches = Batches(record.read)
    record.goes_on.clear()
    alone = asyncio.create_task(batches.get(1))
    await until(record, 1)
    impatient, patient = (asyncio.create_task(batches.get(2)) for _ in range(2))
    await asyncio.sleep(0)
    for one in (alone, impatient):
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
    record.goes_on.set()
    assert await patient == "read 2"
