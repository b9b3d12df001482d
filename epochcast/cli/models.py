"""`models`: what jobs have published, and fetching it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epochcast.cli.options import Json, Token, Url, client
from epochcast.cli.output import ago, metrics_text, print_json, print_table

if TYPE_CHECKING:
    from epochcast.client import Client
    from epochcast.handles import Model

models_app = typer.Typer(
    help="List the models that jobs have saved, or download one.",
    epilog="Example: epochcast models, then: epochcast models download 7",
    invoke_without_command=True,
)


def add_to(app: typer.Typer) -> None:
    models_app.callback()(list_models)
    models_app.command(epilog="Example: epochcast models download 7 --output digits.safetensors")(download)
    app.add_typer(models_app, name="models")


def list_models(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="At most that many.")] = 20,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    with client(url, token) as server:
        models = server.models(limit=limit)
    if as_json:
        print_json(models)
        return
    print_table(
        ("model", "name", "job", "metrics", "MiB", "created"),
        (
            (
                model.model_id,
                model.name,
                model.job_id,
                metrics_text(model.metrics),
                round(model.bytes / 2**20, 2),
                ago(model.created_at),
            )
            for model in models
        ),
        nothing="no models yet; a job's model is listed here when it has succeeded",
    )


def download(
    model_id: Annotated[int, typer.Argument(metavar="MODEL", min=1, max=2**63 - 1, help="The model's number.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="A file or folder (default: model-MODEL.safetensors)."),
    ] = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Download a model's safetensors file and check it; a broken download goes on where it broke off."""
    with client(url, token) as server:
        model = server.model(model_id)
        path = _with_progress(server, model, output, is_shown=not as_json and sys.stderr.isatty())
    if as_json:
        print_json({"model_id": model_id, "path": str(path), "bytes": model.bytes, "sha256": model.sha256})
    else:
        print(f"{path} ({model.bytes} bytes, sha256 {model.sha256[:12]} checked)")


def _with_progress(server: "Client", model: "Model", output: Path | None, *, is_shown: bool) -> Path:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("model {task.fields[number]}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown, transient=True) as progress:
        task = progress.add_task("", total=model.bytes, number=model.model_id)
        return server.download_model(model.model_id, output, lambda done: progress.update(task, completed=done))
