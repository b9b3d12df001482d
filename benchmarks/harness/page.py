"""The page `docs/benchmarks.md`, made of nothing but saved records."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.harness.record import Record

HEAD = """# Benchmarks

Written by `make bench` from what it measured; edits by hand are lost, and a test finds them. What is compared takes
turns in one run, because the same program drifts between runs: ratios mean more than times. Goals stand beside the
figures, missed ones too. [CONTRIBUTING](../CONTRIBUTING.md#benchmarks) says how to add one.
"""
FIRST = ("start", "report", "training")
NO_GPU = """## On a GPU

Nothing was measured on a GPU yet: `python -m benchmarks.write` on a machine that has one adds a section.
"""


def page_of(records: Sequence[Record]) -> str:
    """One section for each machine with its versions, CPU machines first."""
    here: dict[str, list[Record]] = {}
    for record in sorted(records, key=_place):
        here.setdefault(_where(record), []).append(record)
    sections = [_section(where, measured) for where, measured in here.items()]
    if not any("gpu" in record.machine for record in records):
        sections.append(NO_GPU)
    return "\n".join([HEAD, *sections])


def _place(record: Record) -> tuple[bool, int, str]:
    order = FIRST.index(record.benchmark) if record.benchmark in FIRST else len(FIRST)
    return "gpu" in record.machine, order, record.benchmark


def _where(record: Record) -> str:
    """The section's heading and what is the same for all of it."""
    machine = record.machine
    heading = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores, no GPU"
    lines = [
        ("machine", ", ".join(f"{name}: {value}" for name, value in machine.items())),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
    ]
    return f"## On {heading}\n\n{_table(('', ''), lines)}\n"


def _section(where: str, records: Sequence[Record]) -> str:
    return "\n".join([where, *(_benchmark(record) for record in records)])


def _benchmark(record: Record) -> str:
    result = record.result
    parts = [f"### {result.get('title', record.benchmark)}", result.get("about", "")]
    parts += [_table(table["columns"], table["rows"]) for table in _tables(result)]
    parts.append("\n".join(f"- {note}" for note in result.get("notes", [])))
    parts.append(
        f"`{record.command}`, {record.measured}, {record.seconds:,.0f} s, load average before it {record.load:.1f}."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _tables(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A benchmark that prints no tables of its own gets one of all its figures."""
    if "tables" in result:
        tables: list[dict[str, Any]] = result["tables"]
        return tables
    shown = {name: value for name, value in result.items() if name not in ("benchmark", "title", "about", "notes")}
    return [{"columns": ("figure", "value"), "rows": list(_figures(shown))}]


def _figures(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Every value of nested objects, with the way to it as its name."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from _figures(inner, f"{name}.{key}" if name else str(key))
        case list():
            yield name, ", ".join(map(str, value))
        case _:
            yield name, str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
