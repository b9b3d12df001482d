"""What of an attempt is kept whatever becomes of it: its trainers' raw output, and the allocator's snapshot."""

from collections.abc import Iterator
from pathlib import Path

import structlog

from epochcast.jobs import TrainingJob
from shared.artifacts import ArtifactStore, ArtifactsUnavailable, sha256_of
from shared.attempt import StoredFile
from worker.oom_snapshot import MAX_BYTES
from worker.ranks import Ranks
from worker.reports import SavedFile
from worker.workspace import Workspace

logger = structlog.get_logger(__name__)


def stored_files(
    store: ArtifactStore, workspace: Workspace, job: TrainingJob, ranks: Ranks, snapshot: SavedFile | None
) -> Iterator[StoredFile]:
    """Uploads this host's: the output of each rank that wrote any, and `snapshot`, the GPU allocator's.

    One that can't be stored costs itself, not the attempt: a store that is away must not hide why a job failed.
    """
    for kind, path, key in _files(workspace, job, ranks, snapshot):
        try:
            if path.exists() and path.stat().st_size > 0:
                store.put(key, path)
                yield StoredFile(kind=kind, key=key, bytes=path.stat().st_size, sha256=sha256_of(path))
        except (ArtifactsUnavailable, OSError) as error:
            logger.warning("a file of the attempt was not kept", kind=kind, key=key, error=str(error))


def _files(
    workspace: Workspace, job: TrainingJob, ranks: Ranks, snapshot: SavedFile | None
) -> Iterator[tuple[str, Path, str]]:
    for rank in ranks.here:
        yield "log", workspace.output(rank), f"jobs/{job.job_id}/logs/{_name(job, rank)}.log"
    path = snapshot.path(workspace.out) if snapshot is not None else None
    if snapshot is not None and path is not None and path.stat().st_size <= MAX_BYTES:  # nobody is left to change it
        yield "oom_snapshot", path, f"jobs/{job.job_id}/oom-snapshots/{_name(job, snapshot.rank)}.pickle"


def _name(job: TrainingJob, rank: int) -> str:
    return f"{job.attempt:04d}-rank-{rank}" if rank else f"{job.attempt:04d}"
