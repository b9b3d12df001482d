"""What a run is told at its start: the file that `EPOCHCAST_JOB` names or, outside a job, a local stand-in for it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from epochcast import environment

LOCAL_CHECKPOINTS_KEPT = 2
_WHOLE_EPOCH = re.compile(r"ckpt-(\d+)(?:\.\d+)?(?:\.pt)?")


@dataclass(frozen=True)
class JobFile:
    """One attempt of a job. `checkpoints`: newest first. `job_id` is None outside a job.

    A job of a `bundle` has a `script` (absolute), `args` and `env`; `environments`: where the host keeps its own.
    """

    params: dict[str, Any]
    total_epochs: int
    seed: int
    out_dir: Path
    checkpoints: tuple[Path, ...]
    name: str | None = None
    job_id: int | None = None
    recipe: str | None = None
    threads: int | None = None
    bundle: str | None = None
    script: Path | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    environments: Path | None = None

    def with_defaults(self, params: Mapping[str, Any]) -> "JobFile":
        return replace(self, params={**params, **self.params})

    def prune(self) -> None:
        """Outside a job nobody takes the checkpoints away, so only the newest two stay."""
        if self.job_id is None:
            for file in _newest_first(self.out_dir)[LOCAL_CHECKPOINTS_KEPT:]:
                if file.is_dir():
                    import shutil

                    shutil.rmtree(file, ignore_errors=True)
                else:
                    file.unlink(missing_ok=True)


def from_environment() -> JobFile | None:
    """The job this process was started for, or None outside a job."""
    file = environment.told(environment.JOB)
    if file is None or environment.told(environment.SOCKET) is None:
        return None
    job = json.loads(Path(file).read_text())
    return JobFile(
        params=job["params"],
        total_epochs=job["total_epochs"],
        seed=job["seed"],
        out_dir=Path(job["out_dir"]),
        checkpoints=tuple(Path(checkpoint["file"]) for checkpoint in job["checkpoints"]),
        name=job.get("name"),
        job_id=job["job_id"],
        recipe=job.get("recipe"),
        threads=job.get("threads"),
        bundle=job.get("bundle"),
        script=_path(job.get("script")),
        args=tuple(job.get("args") or ()),
        env=job.get("env") or {},
        environments=_path(job.get("environments")),
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def local(params: Mapping[str, Any], total_epochs: int, seed: int, out_dir: Path) -> JobFile:
    """The stand-in. An interrupted run's checkpoints in `out_dir` can be resumed; those of a finished one can't,
    or running a script again would train nothing."""
    found = _newest_first(out_dir)
    newest = _WHOLE_EPOCH.fullmatch(found[0].name) if found else None
    is_finished = newest is not None and int(newest[1]) >= total_epochs
    return JobFile(dict(params), total_epochs, seed, out_dir, () if is_finished else tuple(found))


def _newest_first(folder: Path) -> list[Path]:
    """Files, and the folders that several ranks have filled: `.metadata` comes last."""
    found = [path for path in folder.glob("ckpt-*") if path.suffix == ".pt" or (path / ".metadata").exists()]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
