"""A job's metrics as TensorBoard's event files, from its first epoch on and live: `follow`."""

import re
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

from epochcast.async_client import AsyncClient
from epochcast.event_files import EventFile
from epochcast.events import Progress
from epochcast.following import OnNotice, unnoticed
from epochcast.jobs import Metrics, TrainingJob

OnEpoch = Callable[[int, int], None]
"""Called with job and epoch when an epoch is in the file."""


def run_name(job: TrainingJob) -> str:
    """`42-digits`: what the run is called in TensorBoard, and its folder."""
    return f"{job.job_id}-{re.sub(r'[^A-Za-z0-9._-]+', '-', job.name)[:60]}".rstrip("-.")


async def follow(
    client: AsyncClient,
    job: TrainingJob,
    folder: Path,
    *,
    on_epoch: OnEpoch = lambda _job, _epoch: None,
    on_notice: OnNotice = unnoticed,
) -> None:
    """Writes every epoch with the time at which it was reported, until the job ends.

    The event log is read from its beginning: it has the times, and after a lost connection it goes on without a hole.
    What it has lost (a very long job) is taken from the metrics history, which has no times.
    """
    with EventFile(folder) as file:
        curves = _Curves(file)
        async with aclosing(client.watch(job.job_id, after="0", on_notice=on_notice)) as messages:
            async for message in messages:
                if message.type == "complete":
                    # `save_model` may have named more than the last report did.
                    curves.add(message.current_epoch, message.final_metrics, message.timestamp.timestamp())
                elif message.type == "progress":
                    if message.resync:
                        await _make_up(client, message, curves)
                    curves.add(message.current_epoch, message.metrics, message.timestamp.timestamp())
                    on_epoch(job.job_id, message.current_epoch)


async def _make_up(client: AsyncClient, message: Progress, curves: "_Curves") -> None:
    columns = await client.metrics(message.job_id)
    names = [name for name in columns if name != "epoch"]
    for row, epoch in enumerate(columns["epoch"]):
        if epoch is not None and epoch > curves.epoch:
            metrics = {name: columns[name][row] for name in names}
            curves.add(int(epoch), metrics, message.timestamp.timestamp())


class _Curves:
    """What a file has: the newest epoch and its values."""

    def __init__(self, file: EventFile) -> None:
        self._file = file
        self.epoch = 0
        self._values: dict[str, float] = {}

    def add(self, epoch: int, metrics: Metrics, wall_time: float) -> None:
        """Adds what is new of an epoch. Messages between two epochs repeat the newest one's."""
        values = {name: value for name, value in metrics.items() if value is not None}
        if epoch < self.epoch:
            self._file.go_back(max(epoch, 1), wall_time)
            self._values = {}
        elif epoch == self.epoch:
            values = {name: value for name, value in values.items() if self._values.get(name) != value}
        else:
            self._values = {}
        self.epoch = epoch
        if values and epoch > 0:
            self._file.add(epoch, values, wall_time)
            self._values |= values
