"""`list`, `show`, `stop`, `restart`, `attempts`: jobs, one or many."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from epochcast.cli.failure import memory_text, place
from epochcast.cli.live_table import repaint
from epochcast.cli.options import JobId, Json, Token, Url, Watch, client
from epochcast.cli.output import (
    ago,
    console,
    duration,
    metrics_text,
    plain_lines,
    print_fields,
    print_json,
    print_table,
    status_text,
    table_of,
    typed,
)
from epochcast.cli.watch import follow

if TYPE_CHECKING:
    from rich.console import RenderableType

    from epochcast.answers import Attempt
    from epochcast.jobs import JobError, TrainingJob


def add_to(app: typer.Typer) -> None:
    app.command("list", epilog="Examples: epochcast list --status running, epochcast list --watch")(list_jobs)
    app.command(epilog="Example: epochcast show 42")(show)
    app.command(epilog="Example: epochcast stop 42")(stop)
    app.command(epilog="Example: epochcast restart 42 --watch")(restart)
    app.command(epilog="Example: epochcast attempts 42")(attempts)


def list_jobs(
    status: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed or stopped.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only those with this tag.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Only those of this recipe.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most that many.")] = 20,
    watch: Watch = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    _check_status(status)
    with client(url, token) as server:
        fetch = partial(server.jobs, status=status, owner=owner, tag=tag, recipe=recipe, limit=limit)
        if watch:
            repaint(fetch, _picture, as_json=as_json)
        jobs = fetch()
    if as_json:
        print_json(jobs)
        return
    nothing = "no jobs; submit one with: epochcast submit --recipe image-classifier"
    print_table(JOB_COLUMNS, map(_job_row, jobs), nothing=nothing, whole=SHORT)


JOB_COLUMNS = ("job", "name", "status", "progress", "epoch", "loss", "owner", "created")
SHORT = ("status", "progress", "ETA", "epoch", "created")
# Of a terminal: so many columns take a bar, and whose a job is and since when.
WIDE = 110


def _job_row(job: "TrainingJob") -> list[object]:
    return [
        job.job_id,
        job.name,
        status_text(job.status),
        f"{job.progress:.0%}",
        f"{job.current_epoch}/{job.total_epochs}",
        job.current_loss,
        job.owner,
        ago(job.created_at),
    ]


def _picture(jobs: "Sequence[TrainingJob]") -> "RenderableType":
    """Live there is a reason to say when a job is over, and on a wide terminal room for a bar."""
    from rich.progress_bar import ProgressBar

    is_wide = console().width >= WIDE
    rows: list[list[object]] = []
    for job in jobs:
        number, name, status, progress, epoch, loss, owner, created = _job_row(job)
        eta = duration(job.eta_s) if job.eta_s is not None and job.status == "running" else ""
        bar = ProgressBar(1.0, job.progress, width=12)
        if is_wide:
            rows.append([number, name, status, bar, progress, eta, epoch, loss, owner, created])
        else:
            rows.append([number, name, status, progress, eta, epoch, loss])
    wide = ("job", "name", "status", "", "progress", "ETA", "epoch", "loss", "owner", "created")
    narrow = ("job", "name", "status", "progress", "ETA", "epoch", "loss")
    return table_of(wide if is_wide else narrow, rows, whole=SHORT)


def _check_status(status: str | None) -> None:
    from epochcast.jobs import Status

    if status is not None and status not in list(Status):
        raise typer.BadParameter(f"{status!r} is none; choose from {', '.join(Status)}", param_hint="--status")


def show(job_id: JobId, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Show one job."""
    with client(url, token) as server:
        job = server.job(job_id)
    _print_job(job, as_json)


def _print_job(job: "TrainingJob", as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    eta = duration(job.eta_s) if job.eta_s is not None else None
    print_fields(
        [
            ("job", job.job_id),
            ("name", job.name),
            ("owner", job.owner),
            ("status", f"{job.status}, stopping" if _is_stopping(job) else status_text(job.status)),
            ("waits for", job.pending_reason),
            ("in queue", job.queue_position),
            ("starts", _starts(job)),
            ("epoch", f"{job.current_epoch}/{job.total_epochs} ({job.progress:.0%})"),
            ("ETA", eta),
            ("metrics", metrics_text(job.final_metrics or job.metrics) or None),
            ("model", job.model_id),
            ("error", job.error_message),
            *_failure_fields(job),
            ("recipe", job.spec.recipe),
            ("parameters", typed(job.spec.hyperparameters) or None),
            ("tags", " ".join(job.spec.tags) or None),
            ("hosts", ", ".join(_place(host.name, host.gpus) for host in job.hosts) or None),
            ("attempt", job.attempt or None),
            ("created", ago(job.created_at)),
            ("started", ago(job.started_at) if job.started_at else None),
            ("finished", ago(job.finished_at) if job.finished_at else None),
        ]
    )
    if job.error is not None:
        _print_texts(job.error)


def _starts(job: "TrainingJob") -> str | None:
    if job.expected_start_at is None:
        return None
    return f"{job.expected_start_at:%Y-%m-%d %H:%M} UTC (expected)"


def _failure_fields(job: "TrainingJob") -> list[tuple[str, object]]:
    error = job.error
    if error is None:
        return []
    return [
        ("verdict", error.verdict),
        ("memory", memory_text(error.memory)),
        ("where", place(error)),
    ]


def _print_texts(error: "JobError") -> None:
    """Below the fields, each line as it is: carets and indents mean something."""
    for text in (error.detail, error.traceback):
        if text:
            print("\n" + "\n".join(plain_lines(text)))


def _is_stopping(job: "TrainingJob") -> bool:
    return job.stop_requested and not job.status.is_terminal


def _place(host: str, gpus: list[int]) -> str:
    return f"{host} (GPU {', '.join(map(str, gpus))})" if gpus else host


def stop(job_id: JobId, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Ask a job to stop; it keeps a checkpoint and can be restarted."""
    with client(url, token) as server:
        job = server.stop(job_id)
    if as_json:
        print_json(job)
    else:
        print(f"job {job_id} is {job.status}" if job.status.is_terminal else f"job {job_id} is asked to stop")


def restart(
    job_id: JobId,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Not from its last checkpoint.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end.")] = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Run a failed or stopped job again, from its last checkpoint."""
    with client(url, token) as server:
        job = server.restart(job_id, from_scratch=from_scratch)
    if as_json:
        print_json(job)
    else:
        print(f"job {job_id} is {job.status}")
    if watch:
        follow(job_id, url, token, as_json=as_json)


def attempts(job_id: JobId, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Show each run of a job: where it ran, and why it ended."""
    with client(url, token) as server:
        found = server.attempts(job_id)
    if as_json:
        print_json(found)
        return
    print_table(
        ("attempt", "host", "GPUs", "started", "lasted", "outcome", "reason"),
        (_attempt_row(attempt) for attempt in found),
        nothing=f"job {job_id} has not run yet",
    )


def _attempt_row(attempt: "Attempt") -> list[object]:
    ended = attempt.ended_at or datetime.now(UTC)
    return [
        attempt.number,
        ", ".join(member.host for member in attempt.members) or attempt.host,
        ", ".join(str(gpu) for gpu in attempt.gpus) or None,
        f"{attempt.started_at:%Y-%m-%d %H:%M:%S}",
        duration((ended - attempt.started_at).total_seconds()),
        attempt.outcome,
        attempt.reason,
    ]
