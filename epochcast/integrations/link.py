"""How a script that doesn't know its job reports to it: no seeds, no errors, nothing of the script is touched."""

import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from epochcast import environment, job_file, training
from epochcast.reporting import AttemptSocket, Disconnected, Outlet, Terminal, finite

_current: "Link | None" = None
_LOSSES = {
    ("loss",): "loss",
    ("loss", "train"): "train_loss",
    ("loss", "training"): "train_loss",
    ("eval", "loss"): "val_loss",
    ("loss", "val"): "val_loss",
    ("loss", "valid"): "val_loss",
    ("loss", "validation"): "val_loss",
}


def link() -> "Link":
    """This process's, also after a fork."""
    global _current
    if _current is None or _current.pid != os.getpid():
        _current = Link()
    return _current


def metric_name(tag: str) -> str:
    """`Loss/train`, `train/loss` and `train_loss` are `train_loss`, the validation's are `val_loss`; others stay."""
    words = tuple(sorted(word for word in re.split(r"[^a-z0-9]+", tag.lower()) if word))
    return _LOSSES.get(words, tag)


class Link:
    """Speaks through the script's own run when it has one, else for itself; outside a job to the terminal."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        job = job_file.from_environment()
        self._in_job = job is not None
        self.total_epochs = 1 if job is None else job.total_epochs
        self.framework_reports = False
        """Whether a framework has reported here: its epochs are the truth, whatever scalars say."""
        self._reporter: object | None = None
        self._outlet: Outlet | None = None
        self._has_complained = False

    def claim(self, reporter: object) -> bool:
        """Whether `reporter` is the one that reports until it calls `release`: one framework at a time."""
        if self._reporter is None:
            self._reporter = reporter
            self.framework_reports = True
        return self._reporter is reporter

    def release(self, reporter: object) -> None:
        if self._reporter is reporter:
            self._reporter = None

    def report(self, epoch: int, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Metrics of an epoch, or of a step in it; what is no number is left out."""
        values: dict[str, float | None] = {}
        non_finite: list[str] = []
        for name, value in metrics.items():
            try:
                number, not_finite = finite({name: value})
            except TypeError:
                continue
            values |= number
            non_finite += not_finite
        if values or step is None:
            about = {"metrics": values, "non_finite": non_finite, "time": time.time()}
            self._send({"type": "report", "epoch": epoch, "step": step, **about})

    def epoch_ended(self, epoch: int, total_epochs: int | None = None) -> None:
        """The epoch's reports are complete, and the next one begins; `total_epochs`: how many the script trains."""
        if total_epochs is not None:
            self.total_epochs = total_epochs
        self._send({"type": "epoch", "epoch": epoch, "total_epochs": total_epochs})

    def pass_on(self, packet: dict[str, Any]) -> None:
        """For the trainer: after all reports, over the same connection. Raises Disconnected."""
        packet = {**packet, "rank": environment.rank()}
        run = training.current_run()
        if run is not None:
            run.pass_on(packet)
        else:
            self._own_outlet().send(packet)

    def _send(self, packet: dict[str, Any]) -> None:
        try:
            self.pass_on(packet)
        except (Disconnected, ValueError) as error:  # the supervisor's end ends this process soon; a training goes on
            if not self._has_complained:
                print(f"epochcast: {error}", file=sys.stderr)
            self._has_complained = True

    def _own_outlet(self) -> Outlet:
        if not self._in_job:
            return Terminal(self.total_epochs)
        if self._outlet is None:
            self._outlet = AttemptSocket(environment.socket())
        return self._outlet


def is_spoken_for() -> bool:
    """Whether the script called `epochcast.init`: then it reports itself, and nothing is reported for it."""
    return training.current_run() is not None


def has_spoken() -> "Link | None":
    """This process's link, if anything was reported through it."""
    return _current if _current is not None and _current.pid == os.getpid() else None
