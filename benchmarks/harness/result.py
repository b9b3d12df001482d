"""What a benchmark says: tables for people, figures for programs, printed so that the last line is the JSON of both."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are ready text: the benchmark knows which digits mean something."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Result:
    """`figures`: what the tables say, as numbers, by name. `notes`: what a reader must know to believe them."""

    benchmark: str
    title: str
    about: str
    tables: list[Table]
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def show(self) -> None:
        """Prints it for people, and as its last line the whole of it as JSON, which `benchmarks.write` reads."""
        print(f"\n{self.title}\n{self.about}")
        for table in self.tables:
            print()
            print("\n".join(aligned(table)))
        for note in self.notes:
            print(f"- {note}")
        print(json.dumps(asdict(self)), flush=True)


def aligned(table: Table) -> list[str]:
    """The table as lines for a terminal."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def goal(limit: float, value: float, unit: str) -> str:
    """The goal beside a figure, and whether it is met: at most `limit`."""
    return f"≤ {limit:g}{unit}: {'met' if value <= limit else 'missed'}"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else values[0]


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median, and between which values all of them lie."""
    low, high = min(values), max(values)
    return f"{median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"
