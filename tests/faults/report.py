"""What a soak says at its end, and its place in docs/reliability.md."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from benchmarks.harness import machine
from tests.faults.cluster import Cluster
from tests.faults.findings import Finding
from tests.faults.record import Reader
from tests.faults.service import CHECKOUT
from tests.faults.subscribers import Audience
from tests.faults.watch import Watch

PAGE = CHECKOUT / "docs" / "reliability.md"
BEGIN, END = "<!-- written by make soak -->", "<!-- end of what make soak writes -->"


@dataclass(frozen=True, slots=True)
class Report:
    """`text`: Markdown."""

    text: str

    @classmethod
    def of(
        cls,
        cluster: Cluster,
        seed: int,
        minutes: float,
        database: str,
        done: Counter[str],
        job_ids: Sequence[int],
        audience: Audience,
        watch: Watch,
        findings: Sequence[Finding],
    ) -> "Report":
        records = Reader(cluster.settings).jobs(list(job_ids))
        ended = Counter(str(record.row.status) for record in records)
        outcomes = Counter(str(attempt.outcome) for record in records for attempt in record.attempts)
        steps = sum(len(cluster.took_steps(job_id)) for job_id in job_ids)
        heard = sum(len(joined.told) for joined in audience.joined)
        about = machine.describe()
        injected = Counter({name: count for name, count in done.items() if name != "nothing"})
        lines = [
            f"`make soak ARGS='--minutes {minutes:g} --seed {seed}'`, {datetime.now(UTC):%Y-%m-%d}, "
            f"{'PostgreSQL' if database == 'postgres' else 'SQLite'}, {about['cpu']}, {about['cores']} cores.",
            "",
            "| injected | times |",
            "| --- | --- |",
            *(f"| {_words(name)} | {count} |" for name, count in sorted(injected.items())),
            f"| **all** | **{injected.total()}** |",
            "",
            "| what it met | |",
            "| --- | --- |",
            f"| jobs | {len(records)}: {_counts(ended)} |",
            f"| attempts | {outcomes.total()}: {_counts(outcomes)} |",
            f"| steps by the trainers' own log | {steps:,} |",
            f"| process trees followed to their end | {watch.seen} |",
            f"| events in the logs | {sum(len(record.story) for record in records):,} |",
            f"| subscribers (WebSocket, SSE, polling) | {len(audience.joined)}, "
            f"{sum(joined.connections for joined in audience.joined):,} connections |",
            f"| messages they got | {heard:,}, of them `resync`: "
            f"{sum(told.resync for joined in audience.joined for told in joined.told)} |",
            f"| models compared bit for bit with an uninterrupted run's | {ended['succeeded']} |",
            f"| **lost, doubled, overlapping, stale or left behind** | **{len(findings) or 'nothing'}** |",
            *(["", *(f"- {finding}" for finding in findings)] if findings else []),
        ]
        return cls("\n".join(lines))


def _words(name: str) -> str:
    number, _, words = name.partition("_")
    return f"{number.upper()} {words.replace('_', ' ')}"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def write(report: Report) -> None:
    """Puts it in the place of the last one."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{report.text}\n{END}{after}")
