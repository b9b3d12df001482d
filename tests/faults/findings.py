"""What the checker reports: one sentence for each damage, by the promise that it breaks."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`promise`: the invariant's number in docs/architecture.md, such as `I1`."""

    promise: str
    job_id: int | None
    says: str

    def __str__(self) -> str:
        return f"{self.promise}: {f'job {self.job_id}: ' if self.job_id is not None else ''}{self.says}"
