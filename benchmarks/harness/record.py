"""A benchmark's result with where, when and how it was measured, kept as JSON beside the page that shows it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True, slots=True)
class Record:
    """`result`: the JSON object that the benchmark printed last. `load`: the machine's load average before it ran."""

    measured: str
    command: str
    seconds: float
    load: float
    machine: dict[str, str]
    versions: dict[str, str]
    result: dict[str, Any]

    @property
    def benchmark(self) -> str:
        return str(self.result["benchmark"])

    def save(self, folder: Path) -> Path:
        """One file a benchmark and kind of machine: a new measurement takes the place of the old one."""
        path = folder / f"{self.benchmark}.{'gpu' if 'gpu' in self.machine else 'cpu'}.json"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return path


def load_all(folder: Path) -> list[Record]:
    """All that were saved, by file name."""
    return [Record(**json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
