"""TensorBoard scalars as progress: what a script gives to `SummaryWriter.add_scalar` is reported too.

The epoch is the script's own: the nearest variable (or attribute of `self`) called `epoch` or the like in the code
that writes the scalar. A global step can't say it: 0, 1, 2, … counts batches in one script and epochs in the next.
An epoch is over when that variable moves on or the script ends well; from the second one on already with the scalar
that ended the epoch before, if that one is written once an epoch.
"""

import functools
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from types import FrameType
from typing import Any

from epochcast.integrations.link import Link, is_spoken_for, link, metric_name
from epochcast.integrations.on_import import when_imported

MODULES = ("torch.utils.tensorboard.writer", "tensorboardX.writer")
EPOCH_NAMES = ("epoch", "current_epoch", "cur_epoch", "epoch_idx", "epoch_index", "epoch_i", "i_epoch", "ep")
STEP_INTERVAL_S = 0.1
"""Reports by step come at most this often, however often a script writes: TensorBoard's own file has them all."""

_current: "Scalars | None" = None
_is_broken = False


def observe() -> None:
    """Waits for a `SummaryWriter` to be imported."""
    for name in MODULES:
        when_imported(name, lambda module: observe_writer(module.SummaryWriter))


def script_ended() -> None:
    """The last epoch is over: nothing else would say so."""
    if _current is not None and _current.pid == os.getpid() and not _is_broken:
        _current.end()


def observe_writer(writer: Any) -> None:
    """Makes the class report what is written with it; it writes as before."""
    add_scalar, add_scalars = writer.add_scalar, writer.add_scalars

    @functools.wraps(add_scalar)
    def observed_scalar(
        self: Any, tag: Any, scalar_value: Any, global_step: Any = None, *rest: Any, **more: Any
    ) -> Any:
        written = add_scalar(self, tag, scalar_value, global_step, *rest, **more)
        _take(self, {str(tag): scalar_value}, global_step, sys._getframe(1))
        return written

    @functools.wraps(add_scalars)
    def observed_scalars(
        self: Any, main_tag: Any, tag_scalar_dict: Any, global_step: Any = None, *rest: Any, **more: Any
    ) -> Any:
        written = add_scalars(self, main_tag, tag_scalar_dict, global_step, *rest, **more)
        scalars = {f"{main_tag}/{tag}": value for tag, value in tag_scalar_dict.items()}
        _take(self, scalars, global_step, sys._getframe(1))
        return written

    writer.add_scalar, writer.add_scalars = observed_scalar, observed_scalars


class Scalars:
    """What one process's writers have written of the epoch under way."""

    def __init__(self, to: Link) -> None:
        self.pid = os.getpid()
        self._link = to
        self._lock = threading.Lock()
        self._folders: dict[str, str] = {}
        self._epoch: int | None = None
        self._first = 1
        self._metrics: dict[str, Any] = {}
        self._counts: Counter[str] = Counter()
        self._last_name = ""
        self._closing_name: str | None = None
        self._is_over = False
        self._step: int | None = None
        self._step_metrics: dict[str, Any] = {}
        self._step_sent_at = 0.0

    def take(self, folder: str, scalars: Mapping[str, Any], step: Any, epoch: int | None) -> None:
        """`folder`: the writer's; two writers may use the same tags. `epoch`: the script's number, from 0 or 1."""
        if is_spoken_for() or self._link.framework_reports:
            return
        with self._lock:
            if epoch is not None and epoch != self._epoch:
                self._move_on(epoch)
            for tag, value in scalars.items():
                name = self._name(folder, tag)
                self._take_step(name, value, step)
                if self._epoch is not None:
                    self._take_epoch(name, value)

    def end(self) -> None:
        if is_spoken_for() or self._link.framework_reports:
            return
        with self._lock:
            self._send_step()
            if self._epoch is not None:
                self._end_epoch()

    def _move_on(self, epoch: int) -> None:
        if self._epoch is None:
            self._first = min(epoch, 1)
            self._link.epoch_ended(self._number(epoch) - 1)  # from here on an epoch's reports are kept together
        else:
            self._end_epoch()
            self._closing_name = self._last_name if self._counts[self._last_name] == 1 else None
        self._epoch, self._is_over = epoch, False
        self._metrics, self._counts = {}, Counter()

    def _take_epoch(self, name: str, value: Any) -> None:
        self._metrics[name] = value
        self._counts[name] += 1
        self._last_name = name
        if self._is_over:  # history gets it, the epoch's message is out
            self._link.report(self._number(), {name: value})
        elif name == self._closing_name:
            self._end_epoch()

    def _end_epoch(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        epoch = self._number()
        self._link.report(epoch, self._metrics)
        self._link.epoch_ended(epoch, epoch if epoch > self._link.total_epochs else None)

    def _take_step(self, name: str, value: Any, step: Any) -> None:
        if not isinstance(step, int) or step < 0:
            return
        if step != self._step:
            if time.monotonic() - self._step_sent_at >= STEP_INTERVAL_S:
                self._send_step()
            self._step, self._step_metrics = step, {}
        self._step_metrics[name] = value

    def _send_step(self) -> None:
        if self._step_metrics:
            self._link.report(0 if self._epoch is None else self._number(), self._step_metrics, self._step)
            self._step_metrics, self._step_sent_at = {}, time.monotonic()

    def _number(self, epoch: int | None = None) -> int:
        """The epoch counted from 1."""
        number = self._epoch if epoch is None else epoch
        return max(1, (number or 0) + 1 - self._first)

    def _name(self, folder: str, tag: str) -> str:
        name = metric_name(tag)
        if self._folders.setdefault(name, folder) == folder:
            return name
        return metric_name(f"{os.path.basename(folder)}/{tag}")


def epoch_of(frame: FrameType | None) -> int | None:
    """The epoch that the code of this frame, or the nearest that called it, is in; None if it doesn't say."""
    while frame is not None:
        code = frame.f_code
        known = (
            frame.f_globals if code.co_name == "<module>" else {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
        )
        if "self" in known or any(name in known for name in EPOCH_NAMES):
            places = (frame.f_locals, getattr(frame.f_locals.get("self"), "__dict__", {}))
            for name in EPOCH_NAMES:
                for place in places:
                    if type(found := place.get(name)) is int and found >= 0:
                        return found
        frame = frame.f_back
    return None


def _take(writer: Any, scalars: Mapping[str, Any], step: Any, frame: FrameType | None) -> None:
    """Whatever happens here, the writer has written and the script goes on."""
    global _current, _is_broken
    if _is_broken:
        return
    try:
        if _current is None or _current.pid != os.getpid():
            _current = Scalars(link())
        folder = str(getattr(writer, "log_dir", None) or getattr(writer, "logdir", ""))
        _current.take(folder, scalars, step, epoch_of(frame))
    except Exception as error:
        _is_broken = True
        print(f"epochcast: scalars are not reported: {type(error).__name__}: {error}", file=sys.stderr)
