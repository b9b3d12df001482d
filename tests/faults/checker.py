"""The checker: reads SQL, the stream, the archive, the step logs and what subscribers got, and says what is broken.

It knows nothing of how the platform keeps its promises; it only compares what is left after the faults. Each method
is one promise of docs/architecture.md and answers with one finding for each damage.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import orjson

from epochcast.events import BEFORE_ALL, EventId
from epochcast.jobs import Status
from shared.event_log import Entry
from shared.settings import Settings
from tests.faults.findings import Finding
from tests.faults.record import JobRecord, Reader
from tests.faults.steps import Step, read_steps
from tests.faults.subscribers import Joined

# An event of an attempt is written by the database's clock within its generation; the clock has this grain.
GRAIN_S = 1e-6


class Checker:
    """`steps`: the folder of the step logs."""

    def __init__(self, settings: Settings, steps: Path) -> None:
        self._reader = Reader(settings)
        self._steps = steps

    def check(
        self,
        job_ids: Sequence[int] | None = None,
        *,
        heard: Sequence[Joined] = (),
        answers: Mapping[int, str] = MappingProxyType({}),
        weights: bytes | None = None,
        ended: bool = True,
    ) -> list[Finding]:
        """Everything that is broken, of all jobs or some. `ended=False`: of jobs that the test leaves on their way.

        `answers`: the status of each job that a gateway gives now. `weights`: what an uninterrupted run ended with.
        """
        found: list[Finding] = []
        for record in self._reader.jobs(None if job_ids is None else list(job_ids)):
            found += overlaps(record, read_steps(self._steps, record.job_id))
            found += stale_writes(record)
            found += broken_story(record)
            if ended:
                found += unended(record)
            for joined in heard:
                if joined.job_id == record.job_id:
                    found += mishearings(record, joined, ended=ended)
            if answers.get(record.job_id, record.row.status) != record.row.status:
                says = f"is {record.row.status}, and the gateway says {answers[record.job_id]}"
                found.append(Finding("I4", record.job_id, says))
            if weights is not None and record.row.status == Status.SUCCEEDED:
                found += self._other_weights(record, weights)
        return found

    def assert_whole(
        self,
        job_ids: Sequence[int] | None = None,
        *,
        heard: Sequence[Joined] = (),
        answers: Mapping[int, str] = MappingProxyType({}),
        weights: bytes | None = None,
        ended: bool = True,
    ) -> None:
        """Fails with every finding."""
        found = self.check(job_ids, heard=heard, answers=answers, weights=weights, ended=ended)
        assert not found, "\n".join(map(str, found))

    def job_ids(self) -> list[int]:
        return self._reader.job_ids()

    def weights(self, job_id: int) -> bytes | None:
        """The tensors that a job ended with."""
        return self._reader.weights(job_id)

    def _other_weights(self, record: JobRecord, weights: bytes) -> Iterator[Finding]:
        """I5."""
        own = self._reader.weights(record.job_id)
        if own != weights:
            how = "has no model" if own is None else "ended with other weights than the uninterrupted run"
            yield Finding("I5", record.job_id, how)


def overlaps(record: JobRecord, steps: Sequence[Step]) -> Iterator[Finding]:
    """I1: no two attempts at once, by the trainers' own account and by the record's."""
    yield from overlaps_of_steps(steps, record.job_id)
    for before, after in pairwise(record.attempts):
        if before.ended_at is None or before.ended_at > after.started_at + GRAIN_S:
            says = f"attempt {after.number} began at {after.started_at:.3f}, attempt {before.number} ended at"
            yield Finding("I1", record.job_id, f"{says} {before.ended_at}")


def overlaps_of_steps(steps: Sequence[Step], job_id: int) -> Iterator[Finding]:
    """I1: no step of an attempt after the first step of a later one."""
    first: dict[int, Step] = {}
    for step in steps:
        first.setdefault(step.attempt, step)
    for step in steps:
        later = [start.at for attempt, start in first.items() if attempt > step.attempt and start.at <= step.at]
        if later:
            says = f"attempt {step.attempt} (pid {step.pid}) took step {step.step} {step.at - min(later):.3f} s after"
            yield Finding("I1", job_id, f"{says} a later one had begun")
            return


def stale_writes(record: JobRecord) -> Iterator[Finding]:
    """I1: nothing of a generation is stored once the record has moved on from it."""
    written = [(f"events {row.first_seq}-{row.last_seq}", row.generation, row.created_at) for row in record.chunks]
    written += [(f"{row.kind} {row.key}", row.generation, row.created_at) for row in record.artifacts]
    written += [(f"event {row.generation}-{row.seq}", row.generation, row.created_at) for row in record.transitions]
    for what, generation, at in written:
        moved_on = record.began(generation + 1)
        if moved_on is not None and at > moved_on + GRAIN_S:
            says = f"{what} of generation {generation} was stored {at - moved_on:.3f} s after the record moved on"
            yield Finding("I1", record.job_id, says)
    newest = max((row.generation for row in record.transitions), default=0)
    if (record.row.last_generation, newest) != (record.row.generation, record.row.generation):
        says = f"is of generation {record.row.generation}, its newest event of {record.row.last_generation}"
        yield Finding("I1", record.job_id, f"{says}, its newest transition of {newest}")
    of_generation = {row.id: row.generation for row in record.artifacts}
    if record.row.checkpoint_id is not None and record.row.checkpoint_id not in of_generation:
        yield Finding("I1", record.job_id, "its checkpoint pointer leads nowhere")


def broken_story(record: JobRecord) -> Iterator[Finding]:
    """I1, I3: the stream holds what its ids say, in order; with the archive it has no hole that nobody announced."""
    for identifier, entry in zip(record.stream_ids, record.stream, strict=True):
        said = orjson.loads(entry.payload)["id"]
        if said != identifier:
            yield Finding("I1", record.job_id, f"the stream has {said} under the id {identifier}")
    said_ids = [EventId.parse(orjson.loads(entry.payload)["id"]) for entry in record.stream]
    for before, after in pairwise(said_ids):
        if after <= before:
            kind = "a repeat" if after == before else "a stale event"
            yield Finding("I1", record.job_id, f"the stream has {kind}: {after} behind {before}")
    archived = {entry.id: entry for entry in record.archive}
    for entry in record.stream:
        if entry.id in archived and archived[entry.id].payload != entry.payload:
            yield Finding("I3", record.job_id, f"stream and archive tell {entry.id} differently")
    yield from _holes(record.job_id, record.story)


def _holes(job_id: int, story: Sequence[Entry]) -> Iterator[Finding]:
    before = BEFORE_ALL
    for entry in story:
        follows = entry.id == EventId(before.generation, before.seq + 1)
        begins = entry.id.generation > before.generation and entry.id.seq == 1 and entry.prev <= before
        if not follows and not begins and not entry.gap:
            yield Finding("I3", job_id, f"the log has a hole between {before} and {entry.id} (it names {entry.prev})")
        before = entry.id


def unended(record: JobRecord) -> Iterator[Finding]:
    """I2, I4: it has ended, holds nothing, every attempt says how it ended, and the log's last word is the end.

    The log, not the stream alone: what Redis loses of a job that has ended, readers get from the archive.
    """
    row = record.row
    if not Status(row.status).is_terminal:
        yield Finding("I2", record.job_id, f"is {row.status} ({row.pending_reason or 'for no stated reason'})")
        return
    if row.finished_at is None:
        yield Finding("I2", record.job_id, f"is {row.status} and has no end")
    if record.held:
        yield Finding("I2", record.job_id, f"is {row.status} and still holds {record.held} places or GPUs")
    for attempt in (*record.attempts, *record.members):
        if attempt.ended_at is None or attempt.outcome is None:
            yield Finding("I2", record.job_id, f"generation {attempt.generation} on {attempt.host} has no end")
    for event in record.transitions:
        if not event.announced:
            yield Finding("I4", record.job_id, f"event {event.generation}-{event.seq} was never announced")
    last = record.story[-1] if record.story else None
    if last is None or not last.is_terminal or last.status != row.status:
        said = f"{last.id} ({last.type}, {last.status})" if last is not None else "nothing"
        yield Finding("I4", record.job_id, f"is {row.status}, but the log's last word is {said}")


def mishearings(record: JobRecord, joined: Joined, *, ended: bool) -> Iterator[Finding]:
    """I3, I4: joined over its connections a subscriber has the log, in order, each event once, to its end."""
    who = f"{joined.kind} subscriber {joined.number} ({joined.connections} connections)"
    heard = {told.id for told in joined.told}
    for before, after in pairwise(joined.told):
        if after.id <= before.id and not after.resync:
            yield Finding("I3", record.job_id, f"{who} got {after.id} behind {before.id}")
    if not joined.told:
        yield Finding("I3", record.job_id, f"{who} got nothing")
        return
    told_of_loss = max((told.id for told in joined.told if told.resync), default=BEFORE_ALL)
    begin, end = max(joined.told[0].id, told_of_loss), joined.told[-1].id
    missing = [str(entry.id) for entry in record.story if begin < entry.id <= end and entry.id not in heard]
    if missing:
        yield Finding("I3", record.job_id, f"{who} never got {', '.join(missing[:5])} ({len(missing)} in all)")
    known = {entry.id: orjson.loads(entry.payload) for entry in record.story}
    for told in joined.told[1:]:
        if not told.resync and told.id in known and known[told.id] != told.content:
            yield Finding("I3", record.job_id, f"{who} got other words for {told.id} than the log has")
    if ended and not joined.told[-1].is_terminal:
        yield Finding("I4", record.job_id, f"{who} never got the end: its last message is {joined.told[-1].id}")
