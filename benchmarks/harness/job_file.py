"""The file that tells a trainer its job, for a script that is run without a platform."""

import json
from pathlib import Path


def write_job_file(folder: Path, script: Path | None = None, threads: int = 1) -> Path:
    """As `worker/workspace.py` writes it, for a job of one epoch."""
    told = {
        "job_id": 1,
        "attempt": 1,
        "name": "bench",
        "recipe": None,
        "bundle": None,
        "script": None if script is None else str(script),
        "args": [],
        "env": {},
        "environments": None,
        "params": {},
        "total_epochs": 1,
        "seed": 0,
        "threads": threads,
        "checkpoints": [],
        "out_dir": str(folder),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(told))
    return path
