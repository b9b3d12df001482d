"""An attempt's folder on the host: where the trainer works, what it is told, and what is fetched for it."""

import contextlib
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from epochcast.jobs import TrainingJob
from shared.artifacts import ArtifactStore, ArtifactsUnavailable, FileMissing, sha256_of
from shared.claims import Checkpoint, Claim
from shared.manifest import DamagedManifest, is_manifest, read_manifest
from shared.settings import Settings
from worker.ranks import Ranks

CHECKOUT = Path(__file__).resolve().parents[1]
# -P: the working folder holds the user's files, and one named `worker` would be imported instead.
TRAINER = (sys.executable, "-P", "-m", "worker.trainer")
FETCH_S = 60.0
# What a trainer's environment is made of: names a training script has a use for, and nothing of the platform's own.
ALLOWED = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
ALLOWED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "HF_", "TRITON_", "XDG_CACHE_")


@dataclass(frozen=True, slots=True)
class Workspace:
    """`root` holds `work` (the trainer's working directory), `out` (its checkpoints and models) and our own files."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def environments(self) -> Path:
        """The host's virtual environments, which attempts share."""
        return self.root.parents[2] / "venvs"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    def output(self, rank: int) -> Path:
        """Where a trainer's raw output is kept."""
        return self.root / f"output-{rank}.log"

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        with contextlib.suppress(OSError):  # another attempt of the job may have its folder beside this one
            self.root.parent.rmdir()


def jobs_folder(work_dir: Path) -> Path:
    """Below it each attempt has its folder; a new worker empties it once its predecessor's attempts are gone."""
    return work_dir / "jobs"


def make_workspace(settings: Settings, claim: Claim) -> Workspace:
    """A fresh folder for this generation. Raises OSError (disk full, not writable)."""
    job = claim.job
    workspace = Workspace(jobs_folder(settings.work_dir) / f"{job.job_id}" / f"{job.generation}")
    for folder in (workspace.work, workspace.out, workspace.temporary, workspace.root / "resume"):
        folder.mkdir(parents=True, exist_ok=True)
    return workspace


def checkpoints_folder(job: TrainingJob) -> str:
    """The key prefix under which this generation's checkpoints are stored, from whatever host."""
    return f"jobs/{job.job_id}/checkpoints/{job.generation:06d}"


def fetch_checkpoints(
    workspace: Workspace, claim: Claim, store: ArtifactStore
) -> tuple[list[dict[str, object]], list[str]]:
    """Brings committed checkpoints to local disk, newest first, until one is whole.

    Older ones follow it only when it is damaged here; the trainer gets the rest of the list for damage that only
    reading shows. Returns what the trainer is told, and a line for each that could not be used. Raises
    ArtifactsUnavailable: a store that is away must not look like a job without checkpoints.
    """
    found: list[dict[str, object]] = []
    complaints = []
    for checkpoint in claim.checkpoints:
        # Two generations may have given theirs the same name.
        folder = workspace.root / "resume" / str(checkpoint.artifact_id)
        folder.mkdir(parents=True)
        try:
            path = _fetch_whole(store, checkpoint, folder)
        except (FileMissing, DamagedCheckpoint, DamagedManifest) as error:
            how = "missing" if isinstance(error, FileMissing) else "damaged"
            complaints.append(f"checkpoint of epoch {checkpoint.epoch} is {how}: {error}")
            shutil.rmtree(folder)
            continue
        place = {"epoch": checkpoint.epoch, "step": checkpoint.step}
        found.append({"file": str(path), "artifact_id": checkpoint.artifact_id, **place})
        if len(found) == 2:
            break
    return found, complaints


class DamagedCheckpoint(Exception):
    """Raised when a file of a checkpoint is not what was stored."""


def _fetch_whole(store: ArtifactStore, checkpoint: Checkpoint, folder: Path) -> Path:
    """Brings a checkpoint into `folder`: its one file or, of a sharded one, a folder with all ranks' files.

    Raises FileMissing, DamagedCheckpoint, DamagedManifest, ArtifactsUnavailable.
    """
    *_, parent, name = checkpoint.key.split("/")
    path = folder / name
    _fetch_verified(store, checkpoint.key, path, checkpoint.sha256)
    if not is_manifest(checkpoint.key):
        return path
    manifest = read_manifest(path.read_bytes(), checkpoint.key)
    parts = folder / parent
    parts.mkdir()
    for file in manifest.files:
        _fetch_verified(store, file.key, parts / file.name, file.sha256)
    return parts


def _fetch_verified(store: ArtifactStore, key: str, path: Path, sha256: str) -> None:
    fetch(store, key, path)
    if sha256_of(path) != sha256:
        raise DamagedCheckpoint(f"the SHA-256 of {path.name} differs")


def fetch(store: ArtifactStore, key: str, path: Path) -> None:
    """Tries for a minute. Raises FileMissing at once, ArtifactsUnavailable after it."""
    deadline = time.monotonic() + FETCH_S
    while True:
        try:
            return store.get(key, path)
        except FileMissing:
            raise
        except ArtifactsUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def write_job_file(workspace: Workspace, job: TrainingJob, checkpoints: list[dict[str, object]]) -> Path:
    """What the trainer is told, as JSON (`EPOCHCAST_JOB`)."""
    path = workspace.root / "job.json"
    told = {
        "job_id": job.job_id,
        "attempt": job.attempt,
        "name": job.name,
        "recipe": job.spec.recipe,
        "bundle": job.spec.bundle,
        "script": str(workspace.work / job.spec.entrypoint) if job.spec.entrypoint is not None else None,
        "args": job.spec.args,
        "env": job.spec.env,
        "environments": str(workspace.environments),
        "params": job.spec.hyperparameters,
        "total_epochs": job.total_epochs,
        "seed": job.spec.seed,
        "threads": job.spec.threads,
        "checkpoints": checkpoints,
        "out_dir": str(workspace.out),
    }
    path.write_text(json.dumps(told))
    return path


def host_environment() -> dict[str, str]:
    """What every trainer of this host is given, and the fork server that they come from: allow-listed names and our
    own, and no credential of the platform."""
    kept = {name: value for name, value in os.environ.items() if name in ALLOWED or name.startswith(ALLOWED_PREFIXES)}
    return kept | {
        "PYTHONHASHSEED": "0",
        # Threads that wait for each other without spinning: on two busy cores an epoch of a small network took 0.5 s
        # instead of 1 to 4 (2026-11-23).
        "OMP_WAIT_POLICY": "PASSIVE",
        "OPENBLAS_THREAD_TIMEOUT": "4",
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONUNBUFFERED": "1",
        # Asks NVML whether there are GPUs: the CUDA runtime would be initialised in a process that may still fork.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        # cuBLAS computes the same bits twice only with a fixed workspace (its documentation, "Reproducibility").
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


def trainer_environment(
    workspace: Workspace, claim: Claim, socket_path: Path, job_file: Path, ranks: Ranks
) -> dict[str, str]:
    """The whole environment of an attempt's trainers."""
    # One name for all that these processes share on any host, and for no other attempt.
    meeting = ranks.environment(f"epochcast-{claim.job.job_id}-{claim.job.generation}")
    own = {
        "CUDA_VISIBLE_DEVICES": ",".join(claim.gpus),
        "EPOCHCAST_JOB": str(job_file),
        "EPOCHCAST_SOCKET": str(socket_path),
        "OMP_NUM_THREADS": str(claim.job.spec.threads or 1),
        # What torch and data loaders leave in a temporary folder goes with the attempt.
        "TMPDIR": str(workspace.temporary),
    }
    return meeting | host_environment() | own


def template_environment(threads: int) -> dict[str, str]:
    """The fork server's. `threads`: those of most jobs of this host; a trainer is given its own."""
    # OpenBLAS starts its threads when it is loaded, and a process with threads must not be forked.
    return host_environment() | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
