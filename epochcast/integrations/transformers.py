"""Transformers' epochs as progress: `Trainer(callbacks=[EpochcastTrainerCallback()])`, in a job also without."""

import math
import sys
from typing import Any

from epochcast.integrations.link import is_spoken_for, link, metric_name
from epochcast.integrations.on_import import when_imported
from epochcast.integrations.stop_signal import StopSignal

MOST_EPOCHS = 10_000_000
# What the trainer logs about itself rather than about the model.
_ABOUT_SPEED = ("_runtime", "_per_second", "total_flos")


def EpochcastTrainerCallback() -> Any:
    """A `TrainerCallback`. Raises RuntimeError when the script has not imported transformers' trainer."""
    base = getattr(sys.modules.get("transformers.trainer_callback"), "TrainerCallback", None)
    if base is None:
        raise RuntimeError("EpochcastTrainerCallback needs Transformers: import transformers.Trainer first")
    return type("EpochcastTrainerCallback", (Epochs, base), {})(is_automatic=False)


def observe() -> None:
    """Waits for `transformers.Trainer` to be imported."""
    when_imported("transformers.trainer", observe_trainer)


def observe_trainer(module: Any) -> None:
    """Puts a callback among those that every trainer gets."""
    module.DEFAULT_CALLBACKS.append(type("EpochcastTrainerCallback", (_Automatic, module.TrainerCallback), {}))


class Epochs:
    """The hooks. Reports on the first process, once an epoch's evaluation is logged; stops after a step."""

    def __init__(self, is_automatic: bool) -> None:
        self._is_automatic = is_automatic
        self._stop = StopSignal()
        self._speaks = False
        self._metrics: dict[str, Any] = {}
        self._pending: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._is_automatic and is_spoken_for():
            return
        self._speaks = bool(state.is_world_process_zero) and link().claim(self)
        self._metrics, self._pending = {}, None
        if self._speaks:
            total = state.num_train_epochs
            link().epoch_ended(int(state.epoch or 0), total if 0 < total <= MOST_EPOCHS else None)
        if self._speaks and args.world_size == 1:  # several ranks would have to agree on the step to stop after
            self._stop.listen()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._report()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._stop.asked:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not self._speaks or not logs or "train_runtime" in logs:  # the summary of all epochs is not the last one's
            return
        metrics = {
            metric_name(name): value
            for name, value in logs.items()
            if name != "epoch" and not name.endswith(_ABOUT_SPEED)
        }
        self._metrics |= metrics
        if self._pending is None:
            link().report(_epoch(state), metrics, state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        epoch = _epoch(state)
        # A fraction when `max_steps` or a stop ends the training inside an epoch.
        if not self._speaks or (self._stop.asked and epoch - state.epoch > 1e-6):
            return
        self._pending = epoch
        if not any(name in self._metrics for name in ("loss", "train_loss")):
            control.should_log = True  # by default it logs every 500 steps, and an epoch may be shorter

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._report()
        self._stop.leave()
        link().release(self)
        self._speaks = False

    def _report(self) -> None:
        if self._pending is not None:
            link().report(self._pending, self._metrics)
            link().epoch_ended(self._pending)
            self._metrics, self._pending = {}, None


class _Automatic(Epochs):
    def __init__(self) -> None:
        super().__init__(is_automatic=True)


def _epoch(state: Any) -> int:
    """The one under way or just ended, from 1; Transformers counts 0.25, 0.5, … 1.0 in the first."""
    return max(1, math.ceil((state.epoch or 0) - 1e-6))
