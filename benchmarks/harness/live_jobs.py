"""Somebody who reports for many running jobs at an even rate, one event after the other, as their workers would."""

import math
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

import redis

from epochcast.events import EventId, Progress, encode
from epochcast.jobs import Status
from shared.event_log import Entry, EventLog, log_key

EPOCHS = 5_000
START_S = 60.0
# A job's snapshot, which nobody reads here, is about so long.
SNAPSHOT = b'{"name": "digits"}'.ljust(1_200)


@dataclass
class Reporting:
    """`sent` in `seconds`, once it is over."""

    sent: int = 0
    seconds: float = 0.0

    @property
    def per_s(self) -> float:
        return self.sent / self.seconds if self.seconds else 0.0


@contextmanager
def reporting(redis_url: str, jobs: int, per_second: float) -> Iterator[Reporting]:
    """Jobs 1 to `jobs` report, all together `per_second` times a second, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    started, stop, answers = context.Event(), context.Event(), context.Queue()
    process = context.Process(target=_report, args=(redis_url, jobs, per_second, started, stop, answers), daemon=True)
    process.start()
    found = Reporting()
    try:
        if not started.wait(START_S):
            raise RuntimeError("the process that reports did not start")
        yield found
    finally:
        stop.set()
        found.sent, found.seconds = answers.get(timeout=START_S)
        process.join(START_S)


def _report(
    redis_url: str, jobs: int, per_second: float, started: Event, stop: Event, answers: "multiprocessing.Queue[object]"
) -> None:
    client = redis.Redis.from_url(redis_url)
    log = EventLog(client)
    last = [_last(client, job_id) for job_id in range(1, jobs + 1)]
    sent, began = 0, time.monotonic()
    started.set()
    while not stop.is_set():
        due = (time.monotonic() - began) * per_second
        while sent < due:
            place = sent % jobs
            entry = _epoch(place + 1, last[place])
            log.append(place + 1, entry, snapshot=SNAPSHOT, current=entry.payload)
            last[place] = entry.id
            sent += 1
        time.sleep(0.001)
    answers.put((sent, time.monotonic() - began))
    client.close()


def _last(client: redis.Redis, job_id: int) -> EventId:
    rows: Any = client.xrevrange(log_key(job_id), count=1)
    return EventId.parse(rows[0][0].decode())


def _epoch(job_id: int, before: EventId) -> Entry:
    """The next epoch's event: everything in it has changed."""
    identifier = EventId(before.generation, before.seq + 1)
    epoch = min(identifier.seq, EPOCHS)
    loss = 2.5 * math.exp(-epoch / (300 + job_id)) + 0.01 * math.sin(epoch)
    message = Progress(
        id=str(identifier),
        job_id=job_id,
        status=Status.RUNNING,
        progress=epoch / EPOCHS,
        current_epoch=epoch,
        total_epochs=EPOCHS,
        timestamp=time.time(),
        current_loss=loss,
        metrics={"train_loss": loss, "val_loss": loss * 1.1, "val_accuracy": 1 - loss / 3, "lr": 0.001},
        eta_s=(EPOCHS - epoch) / 10,
        attempt=1,
    )
    return Entry(identifier, before, message.type, message.status, "alice", encode(message))
