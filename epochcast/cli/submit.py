"""`submit`: a recipe with its hyperparameters becomes a job."""

from typing import Annotated, Any

import typer

from epochcast.cli.options import Json, Token, Url, client
from epochcast.cli.output import print_fields, print_json, typed
from epochcast.cli.watch import follow
from epochcast.errors import UsageError


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog="Example: epochcast submit --recipe image-classifier -p lr=0.01 --epochs 5 --watch",
        # A script's name is taken only to say what this version runs instead.
        context_settings={"allow_extra_args": True},
    )(submit)


def submit(
    context: typer.Context,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to run; `epochcast recipes` lists them.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="A hyperparameter: JSON, else text; repeat it."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How many epochs (default: the recipe's).")] = None,
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="What to call the job.")] = None,
    seed: Annotated[int | None, typer.Option(help="For data split, weights and order (default: 0).")] = None,
    gpus: Annotated[int | None, typer.Option(help="How many GPUs (default: 0).")] = None,
    gpu_memory: Annotated[float | None, typer.Option(metavar="GIB", help="Free memory wanted on each GPU.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher goes first, -1000 to 1000 (default: 0).")] = None,
    max_restarts: Annotated[int | None, typer.Option(help="Further tries after a failure (default: 0).")] = None,
    max_runtime: Annotated[float | None, typer.Option(metavar="SECONDS", help="End it after that long.")] = None,
    on_oom: Annotated[
        str | None, typer.Option(metavar="fail|shrink", help="GPU memory used up: fail, or try smaller micro-batches.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="WORD", help="A word to find it by; repeat it.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Submitting again with the same key gives the same job.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen; submit nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end, as `epochcast watch`.")] = False,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Submit a training job.

    With --watch the exit code tells the outcome; with --json too, the first line is the job, the others its messages.
    """
    given: dict[str, Any] = {
        "name": name,
        "recipe": recipe,
        "hyperparameters": parameters(param or []),
        "total_epochs": epochs,
        "seed": seed,
        "gpus": gpus,
        "gpu_memory_gib": gpu_memory,
        "priority": priority,
        "max_restarts": max_restarts,
        "max_runtime_s": max_runtime,
        "on_oom": on_oom,
        "tags": tag,
    }
    fields: Any = {field: value for field, value in given.items() if value is not None}
    _check(context.args, recipe, fields)
    with client(url, token) as server:
        if dry_run:
            _show_plan(server.plan(**fields), as_json)
            return
        job = server.submit(idempotency_key=idempotency_key, **fields)
    if as_json:
        print_json(job)
    else:
        print(f"job {job.job_id} ({job.name}) is {job.status}" + ("" if watch else _next_step(job.job_id)))
    if watch:
        follow(job.job_id, url, token, as_json=as_json)


def _check(script: list[str], recipe: str | None, fields: Any) -> None:
    """Raises UsageError for what no server would take, before one is looked for."""
    from epochcast.handles import spec_of

    if not script and recipe is None:
        raise UsageError("name what to run with --recipe, such as image-classifier; `epochcast recipes` lists them")
    spec_of(script[0] if script else None, fields)


def _next_step(job_id: int) -> str:
    return f"; watch it with: epochcast watch {job_id}"


def parameters(given: list[str]) -> dict[str, Any]:
    """`["lr=0.01", "dataset=digits"]` as a dict. Raises UsageError for what isn't NAME=VALUE or comes twice."""
    import orjson

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"-p {text}: give NAME=VALUE, such as -p lr=0.01")
        if name in found:
            raise UsageError(f"-p {text}: {name} is given twice")
        try:
            found[name] = orjson.loads(value)
        except ValueError:
            found[name] = value
    return found


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    spec = plan.get("spec") or {}
    print_fields(
        [
            ("recipe", spec.get("recipe")),
            ("hyperparameters", typed(spec.get("hyperparameters") or {})),
            ("epochs", spec.get("total_epochs")),
            ("hosts", ", ".join(plan.get("hosts_that_fit") or []) or "none fits now"),
            ("in queue", plan.get("queue_position")),
            ("waits for", plan.get("pending_reason")),
        ]
    )
    print("nothing was submitted; leave --dry-run out to do it")
