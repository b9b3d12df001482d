"""Lightning's epochs as progress: `Trainer(callbacks=[EpochcastCallback()])`, and in a job without that line too."""

import functools
import math
import signal
import sys
from typing import Any

from epochcast.integrations.link import is_spoken_for, link, metric_name
from epochcast.integrations.on_import import when_imported
from epochcast.integrations.stop_signal import StopSignal

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def EpochcastCallback() -> Any:
    """A callback for the Lightning that the script has imported, by either of its names.

    Raises RuntimeError when it has imported none.
    """
    return _callback(is_automatic=False)


def observe() -> None:
    """Waits for a `Trainer` to be imported."""
    for package in PACKAGES:
        when_imported(f"{package}.trainer.trainer", lambda module: observe_trainer(module.Trainer))


def observe_trainer(trainer: Any) -> None:
    """Gives each trainer that is made the callback, unless its script already did."""
    initialise = trainer.__init__

    @functools.wraps(initialise)
    def observed(self: Any, *arguments: Any, **named: Any) -> None:
        initialise(self, *arguments, **named)
        try:
            if not any(isinstance(callback, Epochs) for callback in self.callbacks):
                self.callbacks.insert(0, _callback(is_automatic=True))  # those that write checkpoints have to stay last
        except Exception as error:  # a Lightning of another kind still trains
            print(f"epochcast: Lightning's epochs are not reported: {error}", file=sys.stderr)

    trainer.__init__ = observed


class Epochs:
    """The hooks. Reports on rank 0, after everything that is logged in an epoch's end; stops after a step."""

    def __init__(self, is_automatic: bool) -> None:
        super().__init__()
        self._is_automatic = is_automatic
        self._stop = StopSignal()
        self._earlier: Any = None
        self._speaks = False
        self._pending: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """For strategies that send the trainer to processes they spawn."""
        return _callback, (self._is_automatic,)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._earlier = signal.getsignal(signal.SIGTERM)  # Lightning puts its own in this one's place after this hook

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._is_automatic and is_spoken_for():
            return
        self._speaks = bool(trainer.is_global_zero) and link().claim(self)
        if self._speaks:
            link().epoch_ended(trainer.current_epoch, _total_epochs(trainer))
        if self._speaks and trainer.world_size == 1:  # several ranks have to agree on a stop: Lightning's own way then
            self._stop.listen(self._earlier)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._report(trainer, is_over=True)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if self._stop.asked:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._speaks and (trainer.is_last_batch or not self._stop.asked):
            self._pending = trainer.current_epoch + 1
            self._report(trainer, is_over=False)  # the module's own hook may log more; the next hook tells that

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._report(trainer, is_over=True)
        self._leave()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._leave()

    def _report(self, trainer: Any, is_over: bool) -> None:
        if self._pending is None:
            return
        link().report(self._pending, _metrics(trainer))
        if is_over:
            link().epoch_ended(self._pending)
            self._pending = None

    def _leave(self) -> None:
        self._stop.leave()
        link().release(self)
        self._speaks = False
        self._pending = None


def _callback(is_automatic: bool) -> Any:
    """An instance of `Epochs` that is also a `Callback` of each Lightning that is imported."""
    bases = [sys.modules[package].Callback for package in PACKAGES if package in sys.modules]
    if not bases:
        raise RuntimeError(f"EpochcastCallback needs Lightning: import {' or '.join(PACKAGES)} first")
    return type("EpochcastCallback", (Epochs, *bases), {})(is_automatic)


def _total_epochs(trainer: Any) -> int | None:
    """What the trainer will train, by its `max_epochs` and `max_steps`; None without an end."""
    ends: list[float] = [] if trainer.max_epochs in (None, -1) else [trainer.max_epochs]
    batches = trainer.num_training_batches / trainer.accumulate_grad_batches
    if trainer.max_steps not in (None, -1) and 0 < batches < math.inf:
        ends.append(math.ceil(trainer.max_steps / math.ceil(batches)))
    return max(1, int(min(ends))) if ends else None


def _metrics(trainer: Any) -> dict[str, Any]:
    """What was logged; of a metric that was logged by step and by epoch only its plain name, which is the epoch's."""
    logged = dict(trainer.callback_metrics)
    forms = {f"{name}{end}" for name in logged for end in ("_step", "_epoch")}
    return {metric_name(name): value for name, value in logged.items() if name not in forms}
