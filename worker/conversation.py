"""What the trainer says, and what its supervisor makes of it."""

import time
from collections.abc import Callable
from pathlib import Path

from epochcast.jobs import JobError, TrainingJobSpec
from worker.narrator import Voice
from worker.oom_snapshot import MAX_BYTES
from worker.outcome import Cut
from worker.output import named
from worker.recording import LocalCheckpoint, Uploads, judged_loss
from worker.reports import (
    Checkpointed,
    EpochEnded,
    Failure,
    LogLine,
    Message,
    ModelSaved,
    OomSnapshot,
    Report,
    Resumed,
    SavedFile,
    ShardSaved,
    Unreadable,
)
from worker.shard_upload import LocalShard, ShardUploader

# Reports of one epoch from a script without run.epochs() belong together when they come within this time.
MERGE_S = 0.1
# One a rank, and a script may have ranks of its own; a hostile one must not fill memory with them.
MAX_FAILURES = 256


class Conversation:
    """Takes the messages of all ranks in order. `end` asks the supervisor to end the attempt."""

    def __init__(
        self,
        spec: TrainingJobSpec,
        out: Path,
        narrator: Voice,
        uploader: Uploads,
        shards: ShardUploader,
        end: Callable[[Cut, JobError | None], None],
    ) -> None:
        """`out`: the attempt's output folder, where files that the trainer names must lie."""
        self._spec = spec
        self._out = out
        self._narrator = narrator
        self._uploader = uploader
        self._shards = shards
        self._end = end
        self._tells_epochs = False
        self._has_diverged = False
        self.merge_at: float | None = None
        self.last_report = time.monotonic()
        self.failed_at: float | None = None
        self.failures: list[JobError] = []
        """What ranks said of their own failure, in the order in which it came."""
        self.model: SavedFile | None = None
        self.oom_snapshot: SavedFile | None = None

    def take(self, message: Message) -> None:
        if self._has_diverged and not isinstance(message, LogLine | Failure):
            return  # it went on until it was killed, with weights that nobody should resume from
        match message:
            case Report():
                self._take_report(message)
            case EpochEnded(rank=rank) | Resumed(rank=rank) if rank != 0:
                return  # all ranks say it, and rank 0 speaks for them
            case EpochEnded(epoch=epoch, total_epochs=total):
                self._tells_epochs = True
                if total is not None:
                    self._narrator.state.plan(total)
                if self._narrator.state.open_epoch == epoch:
                    self._narrator.close_epoch()
                self._narrator.state.begin_epoch()
            case Checkpointed(saved=saved):
                self._narrator.close_epoch()
                self._take_checkpoint(saved)
            case ShardSaved():
                if message.rank == 0:
                    self._narrator.close_epoch()
                self._take_shard(message)
            case ModelSaved(saved=saved):
                self._narrator.close_epoch()
                if self._is_there(saved, "model"):
                    self.model = saved
            case LogLine(level=level, message=line, rank=rank):
                self._narrator.log(level, named(line, rank))
            case Resumed():
                self._take_resumed(message)
            case Failure(error=error):
                self._narrator.close_epoch()
                self.failed_at = self.failed_at or time.monotonic()
                if len(self.failures) < MAX_FAILURES and all(error.rank != known.rank for known in self.failures):
                    self.failures.append(error)
            case OomSnapshot(saved=saved):
                self._take_snapshot(saved)
            case Unreadable(why=why):
                self._narrator.log("WARNING", why)

    def merge_when_due(self) -> None:
        """Ends an epoch whose reports have stopped coming, for scripts that don't say when their epochs end."""
        if self.merge_at is not None and time.monotonic() >= self.merge_at:
            self.merge_at = None
            self._narrator.close_epoch()

    def _take_report(self, report: Report) -> None:
        self.last_report = time.monotonic()
        if report.rank != 0:
            return
        place = self._narrator.state.place
        self._narrator.report(report)
        if self._narrator.state.has_open_epoch and not self._tells_epochs:
            self.merge_at = time.monotonic() + MERGE_S
        if report.non_finite and self._spec.fail_on_non_finite:
            message = f"{', '.join(report.non_finite)} became NaN or infinite"
            error = JobError(type="diverged", message=message, detail=place, epoch=report.epoch, step=report.step)
            self._has_diverged = True
            self._narrator.close_epoch()
            self._end(Cut.DIVERGED, error)

    def _take_checkpoint(self, saved: SavedFile) -> None:
        path = saved.path(self._out)
        if self._is_there(saved, "checkpoint") and path is not None:
            loss = judged_loss(self._narrator.state.job.metrics)
            self._uploader.add(LocalCheckpoint(path, saved.epoch, saved.step, saved.sha256, saved.bytes, loss))

    def _take_shard(self, saved: ShardSaved) -> None:
        paths = saved.paths(self._out)
        if paths is None:
            line = f"part of checkpoint {saved.checkpoint!r} is not in the attempt's output folder; it was not kept"
            self._narrator.log("WARNING", line)
            return
        files = tuple((path, file.bytes, file.sha256) for path, file in zip(paths, saved.files, strict=True))
        loss = judged_loss(self._narrator.state.job.metrics)
        folder = self._out / saved.checkpoint
        self._shards.add(LocalShard(folder, saved.world, saved.rank, saved.epoch, saved.step, files, loss))

    def _take_snapshot(self, saved: SavedFile) -> None:
        """The first that comes, of a rank that told of its own out-of-memory error before."""
        told = any(error.type == "cuda_oom" and error.rank == saved.rank for error in self.failures)
        if not told or self.oom_snapshot is not None:
            return
        path = saved.path(self._out)
        if self._is_there(saved, "memory snapshot") and path is not None:
            size = path.stat().st_size
            if size > MAX_BYTES:
                self._narrator.log("WARNING", f"memory snapshot {saved.file!r} has {size} bytes; it was not kept")
                return
            self.oom_snapshot = saved
            self._narrator.log(
                "INFO",
                f"the GPU allocator's snapshot ({size / 2**20:.1f} MiB) is kept as an artifact of kind oom_snapshot; "
                "pytorch.org/memory_viz shows it",
            )

    def _is_there(self, saved: SavedFile, kind: str) -> bool:
        if saved.path(self._out) is not None:
            return True
        line = f"{kind} {saved.file!r} is not in the attempt's output folder; it was not kept"
        self._narrator.log("WARNING", line)
        return False

    def _take_resumed(self, resumed: Resumed) -> None:
        for complaint in resumed.unreadable:
            self._narrator.log("WARNING", f"checkpoint skipped: {complaint}")
        self._narrator.state.resumed = resumed.epoch, resumed.step
        if resumed.epoch is not None:
            self._narrator.state.resume_at(resumed.epoch)
            self._narrator.log("INFO", f"resumed after epoch {resumed.epoch}")
            self._narrator.progress()
