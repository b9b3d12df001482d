"""The raw output of an attempt's trainers, kept in the artifact store: one file for each that said anything."""

from collections.abc import Iterator
from pathlib import Path

import structlog

from epochcast.jobs import TrainingJob
from shared.artifacts import ArtifactStore, ArtifactsUnavailable, sha256_of
from shared.attempt import StoredFile
from worker.ranks import Ranks
from worker.workspace import Workspace

logger = structlog.get_logger(__name__)


def stored_logs(store: ArtifactStore, workspace: Workspace, job: TrainingJob, ranks: Ranks) -> Iterator[StoredFile]:
    """Uploads what the ranks of this host wrote. One that can't be stored costs its log, not the attempt."""
    for rank in ranks.here:
        path = workspace.output(rank)
        name = f"{job.attempt:04d}-rank-{rank}" if rank else f"{job.attempt:04d}"
        try:
            if path.exists() and path.stat().st_size > 0:
                yield _stored(store, path, f"jobs/{job.job_id}/logs/{name}.log")
        except (ArtifactsUnavailable, OSError) as error:
            logger.warning("the attempt's log was not kept", rank=rank, error=str(error))


def _stored(store: ArtifactStore, path: Path, key: str) -> StoredFile:
    store.put(key, path)
    return StoredFile(kind="log", key=key, bytes=path.stat().st_size, sha256=sha256_of(path))
