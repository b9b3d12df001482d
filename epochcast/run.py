"""A training script's handle on its job: parameters, epochs, reports, checkpoints, the model, and the wish to stop."""

import operator
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from epochcast import environment, randomness
from epochcast.job_file import JobFile
from epochcast.parts import is_sharded
from epochcast.ranks import Gathering
from epochcast.reporting import Outlet, finite, short
from epochcast.state import State, plain
from epochcast.stop import Stop

if TYPE_CHECKING:
    import torch

    from epochcast.checkpoints import Checkpoint, Written
    from epochcast.resuming import Use
    from epochcast.sampling import EpochSampler

Batch = TypeVar("Batch")
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Run:
    """A script's handle on its job. `params`: the hyperparameters; `rank`: 0 in a single process."""

    def __init__(self, job: JobFile, outlet: Outlet) -> None:
        self.params = job.params
        self.total_epochs = job.total_epochs
        self.seed = job.seed
        self.rank = environment.rank()
        self.pid = os.getpid()
        self.is_closed = False
        self.epoch = 0
        """The epoch under way or, after it, the last one; after a resume, the checkpoint's."""
        self.step: int | None = None
        """The batch under way inside `batches`, from 1; None elsewhere."""
        self.broke_off_at: int | None = None
        """The batch whose step left the loop over `batches` before its end, by `break` or an exception."""
        self._job = job
        self._outlet = outlet
        self._state = State()
        self._stop = Stop(self._warn)
        self._cut_short = False
        self._finished = False
        self._checkpointed: tuple[int, int | None] | None = None
        self._resumable_in_epoch = False
        self._unfinished: Checkpoint | None = None
        self._sharded_names: set[str] = set()
        self._gathering = Gathering("random-states")
        randomness.reseed(self.seed, 0, 0)  # the same for all ranks: they begin with equal weights
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    @property
    def stopping(self) -> bool:
        """Whether to stop here. `epochs` and `batches` then end by themselves; other loops should look here.

        With several ranks it turns true in all of them at the same look, so all should look, equally often.
        """
        return self._stop.look()

    @property
    def cut_short(self) -> bool:
        """Whether `batches` has ended this epoch before its last batch, because a stop was asked."""
        return self._cut_short

    @property
    def finished(self) -> bool:
        """Whether `epochs` has come to its end: the last epoch is trained, here or before a resume."""
        return self._finished

    def state(self, **objects: Any) -> None:
        """Names what a checkpoint holds: objects with `state_dict()` and `load_state_dict()`, dicts and lists.

        Dicts and lists are for what has no state_dict (a best loss, a history); `resume` fills them in place.
        """
        self._state.add(objects)

    def resume(self) -> bool:
        """Loads the newest readable checkpoint into the objects given to `state`; False if there is none.

        Several ranks all call it. Raises UnreadableCheckpoint when damage shows only after a part was loaded, and
        no older checkpoint is there to load instead.
        """
        from epochcast.resuming import filling

        return self._load_newest(filling(self._state)) is not None

    def load(self) -> dict[str, Any] | None:
        """What the newest readable checkpoint holds, tensors on the CPU; `epochs` then goes on after it.

        Of one that several ranks wrote in parts: put together, in each rank that calls this.
        """
        from epochcast.resuming import whole_contents

        return self._load_newest(whole_contents)

    def _load_newest(self, use: "Use") -> dict[str, Any] | None:
        from epochcast.resuming import load_newest

        newest = load_newest(self._job.checkpoints, self.rank, use, self._warn)
        if newest is None:
            return None
        self._continue_after(newest.checkpoint)
        if self.rank == 0:
            found = newest.checkpoint
            self._send("resumed", epoch=found.epoch, step=found.step, unreadable=newest.unreadable[:5])
        return newest.contents

    def epochs(self) -> Iterator[int]:
        """The epochs to train, up to `total_epochs`: from 1, or after the checkpoint that `resume` or `load` loaded.

        Seeds Python, numpy and torch before each. Ends after an epoch in which a stop was asked; what was given to
        `state` is then checkpointed, unless the script has just done so.
        """
        first = self.epoch + (self._unfinished is None)
        # From here on the supervisor knows when an epoch's reports are complete, and how long epochs take.
        self._tell_epoch(first - 1)
        self._stop.look(after_epoch=first - 1)
        for epoch in range(first, self.total_epochs + 1):
            if self._stop.is_reached:
                return
            self.epoch, self.broke_off_at, self._cut_short = epoch, None, False
            randomness.reseed(self.seed, epoch, self.rank)
            yield epoch
            if not self._cut_short:
                self._tell_epoch(epoch)
            if self._stop.look(after_epoch=epoch) and self._state and self._checkpointed != (epoch, None):
                self.checkpoint()
        self._finished = not self._cut_short

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The loader's batches, ending after the step in which a stop was asked. One such loop an epoch.

        An epoch that ends so is neither reported nor checkpointed, and a resumed attempt repeats it from its start:
        what a script carries from step to step outside `state` (sums, gradients) would be lost if it went on inside.
        A script that calls `checkpoint()` at the end of a step says that its state is complete there. Such checkpoints,
        and then also one made at the stop, go on at the next batch, with all random states as they were.
        """
        iterator = iter(loader)
        batch_count = operator.length_hint(loader, -1)
        done = self._skip_done(iterator)
        try:
            while not self._stop.look() or done == batch_count:
                self.step = done + 1
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                yield batch
                done += 1
            self._cut_epoch_short(done)
        except GeneratorExit:
            self.broke_off_at = self.step
            raise
        finally:
            self.step = None

    def sampler(self, size: int, *, shuffle: bool = True, drop_last: bool = False) -> "EpochSampler":
        """For a `DataLoader` over `size` samples: this rank's part of them, in the order of the epoch under way."""
        from epochcast.sampling import EpochSampler

        world = environment.world_size()
        return EpochSampler(
            size,
            lambda: self.epoch,
            seed=self.seed,
            rank=self.rank,
            world=world,
            shuffle=shuffle,
            drop_last=drop_last,
        )

    def report(self, *, epoch: int, step: int | None = None, **metrics: Any) -> None:
        """Tells everybody this epoch's metrics: numbers or one-element tensors. Reports of one epoch are merged.

        Hands one packet to the kernel and returns; nothing else is waited for. Raises Disconnected.
        """
        if self._cut_short:
            return
        self.epoch = operator.index(epoch)
        step = None if step is None else operator.index(step)
        values, non_finite = finite(metrics)
        self._send("report", epoch=self.epoch, step=step, metrics=values, non_finite=non_finite, time=time.time())

    def checkpoint(self, **contents: Any) -> None:
        """Keeps the objects given to `state`, or `contents` for `load`, so that the job can go on from here.

        On disk when this returns. Of several ranks rank 0 writes; inside an epoch all should call it, because the
        random states of each belong to it. Where a rank holds only a part (FSDP, DTensor), all must call it, and each
        writes its own part. Raises Disconnected, OSError (disk full), and TypeError for contents that
        couldn't be read back.
        """
        if self._cut_short:
            return
        held = contents or self._state.objects
        if is_sharded(held):
            self._write_shards(held)
        else:
            states = None if self.step is None else self._random_states()
            if self.rank == 0:
                self._write_checkpoint(plain(contents) if contents else self._state.contents(), states)
        self._checkpointed = (self.epoch, self.step)
        self._resumable_in_epoch |= self.step is not None and not contents

    def save_model(
        self,
        model: "torch.nn.Module",
        metrics: Mapping[str, Any] | None = None,
        name: str = "model.safetensors",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Keeps the trained weights as safetensors, with `metrics` for the registry and as final metrics.

        Rank 0 writes; where each rank holds only a part (FSDP), all must call it, and rank 0 gathers the whole.

        `config`: JSON values from which the model can be built again; they stand in the file's metadata.
        """
        from epochcast import sharded
        from epochcast.checkpoints import write_model, write_weights

        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"model name {name!r} is not a plain file name, such as model.safetensors")
        values, non_finite = finite(metrics or {})
        weights = sharded.full_state(model) if is_sharded({"model": model}) else None
        if self.rank == 0:
            about = {"recipe": self._job.recipe, "params": self.params, "seed": self.seed, "epoch": self.epoch}
            about["config"] = dict(config or {})
            file = self._job.out_dir / name
            written = write_model(file, model, about) if weights is None else write_weights(file, weights, about)
            self._send_file("model", written, metrics=values, non_finite=non_finite)

    def record_memory(self, max_entries: int | None = None) -> bool:
        """From here on torch notes each allocation on the GPU: an out-of-memory error then leaves its snapshot.

        The newest `max_entries` (100,000) are kept. False where there is no CUDA: nothing is recorded.
        """
        from epochcast import memory_history

        return memory_history.record(max_entries or memory_history.MAX_ENTRIES)

    def log(self, message: object, level: Level = "INFO") -> None:
        """One line of the job's log."""
        if level not in _LEVELS:
            raise ValueError(f"log level {level!r} is not one of {', '.join(_LEVELS)}")
        self._send("log", level=level, message=short(message))

    def fail(self, error: Mapping[str, Any]) -> None:
        """Says why the script failed, as the fields of a typed error. For the trainer; scripts raise exceptions."""
        self._send("failure", error=dict(error))

    def pass_on(self, packet: dict[str, Any]) -> None:
        """Sends what an integration says. For integrations; scripts call `report`."""
        self._outlet.send(packet)

    def close(self) -> None:
        """Ends the connection; the next `init` in this process makes a new run."""
        self._outlet.close()
        self.is_closed = True

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a forked helper of the script, such as a Pool's, is meant to die of SIGTERM
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self._stop.ask()

    def _continue_after(self, found: "Checkpoint") -> None:
        self.epoch = found.epoch
        self._checkpointed = (found.epoch, found.step)
        if found.step is not None:
            self._unfinished = found
            self._resumable_in_epoch = True

    def _skip_done(self, iterator: Iterator[Any]) -> int:
        """Takes the batches that the checkpoint's epoch had done, then puts the random states back as they were."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is None or unfinished.step is None:
            return 0
        done = sum(1 for _ in islice(iterator, unfinished.step))
        own = (unfinished.random_states or {}).get(self.rank)
        if own is not None:
            randomness.restore(own)
        return done

    def _cut_epoch_short(self, done: int) -> None:
        if self._resumable_in_epoch and self._state:
            self.step = done
            if done and self._checkpointed != (self.epoch, done):
                self.checkpoint()
        self._cut_short = True
        if self.rank == 0:
            self.log(f"Stopping in epoch {self.epoch} after {done} batches: this epoch is not reported")

    def _random_states(self) -> dict[int, dict[str, Any]]:
        """Those of all ranks, in rank 0."""
        was_complete = not self._gathering.is_incomplete
        found = self._gathering.gather(f"{self.epoch}/{self.step}", randomness.packed(randomness.states()))
        if was_complete and self._gathering.is_incomplete:
            self._warn(
                "Only rank 0 called checkpoint() inside an epoch: resumed there, other ranks draw other random "
                "numbers than before; call it in all ranks"
            )
        return {rank: randomness.unpacked(content) for rank, content in found.items()}

    def _write_checkpoint(self, contents: dict[str, Any], states: dict[int, dict[str, Any]] | None) -> None:
        from epochcast.checkpoints import Checkpoint, write

        written = write(self._job.out_dir, Checkpoint(contents, self.epoch, self.step, states))
        self._send_file("checkpoint", written, epoch=self.epoch, step=self.step)
        self._job.prune()

    def _write_shards(self, objects: Mapping[str, Any]) -> None:
        from epochcast import sharded
        from epochcast.checkpoints import Checkpoint

        states = None if self.step is None else {self.rank: randomness.states()}
        checkpoint = Checkpoint({}, self.epoch, self.step, states)
        name, files = sharded.write(self._job.out_dir, objects, checkpoint, self._sharded_names)
        self._sharded_names.add(name)
        told = [{"file": one.file.name, "bytes": one.size_bytes, "sha256": one.sha256} for one in files]
        world = environment.world_size()
        self._send("shard", world=world, checkpoint=name, epoch=self.epoch, step=self.step, files=told)
        if self.rank == 0:
            self._job.prune()

    def _send_file(self, kind: str, written: "Written", **fields: Any) -> None:
        self._send(kind, file=written.file.name, bytes=written.size_bytes, sha256=written.sha256, **fields)

    def _warn(self, message: str) -> None:
        self.log(message, "WARNING")

    def _tell_epoch(self, epoch: int) -> None:
        if self.rank == 0:
            self._send("epoch", epoch=epoch)

    def _send(self, kind: str, **fields: Any) -> None:
        self._outlet.send({"type": kind, "rank": self.rank, **fields})
