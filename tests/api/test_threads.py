"""Reads that are made together: fresh for everybody who asks, failed for those alone who asked for them."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from api.threads import Batches
from shared.database import DatabaseUnavailable
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


async def under_way() -> tuple[Record, Batches[int, str], "asyncio.Task[str | None]"]:
    """With a read of key 1 that is held, and who asked for it."""
    record = Record()
    batches = Batches(record.read)
    record.goes_on.clear()
    asked = asyncio.create_task(batches.get(1))
    await until(record, 1)
    return record, batches, asked


async def test_who_asks_during_a_read_gets_the_next_one_together_with_all_others() -> None:
    record, batches, first = await under_way()
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


async def test_without_sql_all_who_asked_are_told_by_one_read_and_nobody_after() -> None:
    record = Record()
    batches = Batches(record.read)
    record.error = DatabaseUnavailable("away")
    for one in await asyncio.gather(batches.get(1), batches.get(2), return_exceptions=True):
        assert isinstance(one, DatabaseUnavailable)
    record.error = None
    assert await batches.get(1) == "read 2"


async def test_what_can_not_be_read_fails_alone() -> None:
    def read(keys: Sequence[int]) -> dict[int, int]:
        return {key: 12 // key for key in keys}

    batches = Batches(read)
    for _ in range(2):
        one, none, two = await asyncio.gather(*(batches.get(key) for key in (1, 0, 2)), return_exceptions=True)
        assert (one, two) == (12, 6)
        assert isinstance(none, ZeroDivisionError)


async def test_one_who_gives_up_takes_nothing_from_the_others() -> None:
    record, batches, alone = await under_way()
    impatient, patient = (asyncio.create_task(batches.get(2)) for _ in range(2))
    await asyncio.sleep(0)
    for one in (alone, impatient):
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
    record.goes_on.set()
    assert await patient == "read 2"


async def test_a_read_that_hangs_keeps_nobody_else_waiting_and_is_given_up() -> None:
    hangs = threading.Event()

    def read(keys: Sequence[int]) -> dict[int, int]:
        if 0 in keys:
            assert hangs.wait(30)
        return {key: key for key in keys}

    batches = Batches(read)
    stuck = asyncio.create_task(batches.get(0))
    await asyncio.sleep(0.05)
    assert await asyncio.gather(*(batches.get(key) for key in range(1, 200))) == list(range(1, 200))
    assert not stuck.done()
    with pytest.raises(DatabaseUnavailable):
        await stuck
    hangs.set()


async def test_while_all_reads_hang_whoever_asks_is_told() -> None:
    record, batches, first = await under_way()
    asked = [first]
    for key in range(2, 11):
        await asyncio.sleep(0.3)
        asked.append(asyncio.create_task(batches.get(key)))
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(answer, DatabaseUnavailable)
    assert len(record.reads) < len(asked)
    record.goes_on.set()


async def test_a_reader_that_is_cancelled_leaves_nobody_waiting() -> None:
    record, batches, asked = await under_way()
    for read in batches._reads:
        read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    record.goes_on.set()
    assert await batches.get(1) == "read 2"
