"""The file that tells a trainer its job, for a script that is run without a platform."""

import json
from pathlib import Path


def write_job_file(folder: Path) -> Path:
    """As `worker/workspace.py` writes it, for a job of one epoch."""
    job = {"job_id": 1, "attempt": 1, "name": "bench", "recipe": None, "params": {}, "total_epochs": 1, "seed": 0}
    path = folder / "job.json"
    path.write_text(json.dumps({**job, "threads": 1, "checkpoints": [], "out_dir": str(folder)}))
    return path
