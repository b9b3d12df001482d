"""`submit`: a script with its folder, or a recipe with its hyperparameters, becomes a job."""

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epochcast.cli.options import Json, Token, Url, client
from epochcast.cli.output import plain, print_fields, print_json, typed
from epochcast.cli.script_command import ScriptCommand, script_of
from epochcast.cli.watch import follow
from epochcast.errors import UsageError

if TYPE_CHECKING:
    from epochcast.answers import Plan
    from epochcast.packing import Package

SHOWN_FILES = 12
SHOWN_COMMAND = 400


def add_to(app: typer.Typer) -> None:
    app.command(
        cls=ScriptCommand,
        options_metavar="[OPTIONS] [SCRIPT [ARGS]...]",
        epilog="Examples: epochcast submit train.py --lr 0.1 --watch, "
        "epochcast submit --recipe image-classifier -p lr=0.01 --epochs 5 --watch",
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
    folder: Annotated[
        str | None, typer.Option(metavar="DIR", help="What to send with a script (default: the script's folder).")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the script's environment; repeat it.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How many epochs (default: the recipe's; a script: 1).")] = None,
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="What to call the job.")] = None,
    seed: Annotated[int | None, typer.Option(help="For data split, weights and order (default: 0).")] = None,
    gpus: Annotated[int | None, typer.Option(help="How many GPUs on each host (default: 0).")] = None,
    nodes: Annotated[int | None, typer.Option(help="How many hosts (default: 1).")] = None,
    procs_per_node: Annotated[
        int | None, typer.Option(help="Processes on each host (default: one for each GPU, at least 1).")
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(metavar="GIB", help="Free memory wanted on each GPU.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher goes first, -1000 to 1000 (default: 0).")] = None,
    max_restarts: Annotated[int | None, typer.Option(help="Further tries after a failure (default: 0).")] = None,
    max_runtime: Annotated[float | None, typer.Option(metavar="SECONDS", help="End it after that long.")] = None,
    stall_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="End it when it reports nothing for that long.")
    ] = None,
    fail_on_non_finite: Annotated[
        bool, typer.Option("--fail-on-non-finite", help="End it when a loss becomes NaN or infinite.")
    ] = False,
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
    """Submit a training job: a script of your own with its folder, or a recipe.

    Options of this command are taken before and after the script; all else after the script is for the script. After
    -- everything is: epochcast submit train.py -- --seed 3

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
        "nodes": nodes,
        "procs_per_node": procs_per_node,
        "priority": priority,
        "max_restarts": max_restarts,
        "max_runtime_s": max_runtime,
        "stall_timeout_s": stall_timeout,
        "fail_on_non_finite": fail_on_non_finite or None,
        "on_oom": on_oom,
        "tags": tag,
    }
    fields: Any = {field: value for field, value in given.items() if value is not None}
    package = _package(script_of(context), folder, pairs("--env", env or []), fields)
    if package is not None:
        _show_package(package, fields, as_json)
    with client(url, token) as server:
        if dry_run:
            _show_plan(server.plan(package, **fields), as_json)
            return
        job = server.submit(package, idempotency_key=idempotency_key, **fields)
    if as_json:
        print_json(job)
    else:
        print(f"job {job.job_id} ({job.name}) is {job.status}" + ("" if watch else _next_step(job.job_id)))
    if watch:
        follow(job.job_id, url, token, as_json=as_json)


def _package(script: list[str], folder: str | None, env: dict[str, str], fields: Any) -> "Package | None":
    """What goes with the script, whose arguments and environment join `fields`; None for a recipe.

    Raises UsageError for what no server would take, before one is looked for.
    """
    from epochcast.handles import spec_of
    from epochcast.packing import choose

    if not script and "recipe" not in fields:
        raise UsageError(
            "name what to run: a script, such as train.py, or a recipe with --recipe (`epochcast recipes` lists them)"
        )
    if not script and (folder is not None or env):
        raise UsageError("--folder and --env belong to a script; a recipe takes -p NAME=VALUE")
    if script and "recipe" in fields:
        raise UsageError(f"give a script or --recipe, not both: {script[0]} and {fields['recipe']}")
    package = choose(script[0], folder) if script else None
    if package is not None:
        fields |= {"args": script[1:], "env": env}
    spec_of(fields, package)
    return package


def _show_package(package: "Package", fields: Any, as_json: bool) -> None:
    """What leaves this machine; on stderr where stdout is for programs."""
    out = sys.stderr if as_json else sys.stdout
    files = f"{len(package.files)} file{'s' if len(package.files) != 1 else ''}"
    print(f"sending {files}, {size_text(package.bytes)}, from {plain(package.folder.resolve())}", file=out)
    for file in package.files[:SHOWN_FILES]:
        print(f"  {plain(file.path)}  {size_text(file.bytes)}", file=out)
    if len(package.files) > SHOWN_FILES:
        print(f"  … and {len(package.files) - SHOWN_FILES} more", file=out)
    for path, reason in package.left_out:
        print(f"  left out: {plain(path)} ({reason})", file=out)
    print(f"runs: {_cut(plain(shlex.join(['python', package.entrypoint, *fields['args']])))}", file=out)


def _cut(command: str) -> str:
    """A command that would fill the screen, in part."""
    more = len(command) - SHOWN_COMMAND
    return command if more <= 0 else f"{command[:SHOWN_COMMAND]} … and {more:,} characters more"


def size_text(count: int) -> str:
    """`512 B`, `34.5 KiB`, `1.2 MiB`."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"


def _next_step(job_id: int) -> str:
    return f"; watch it with: epochcast watch {job_id}"


def pairs(option: str, given: list[str], example: str = "DEBUG=1") -> dict[str, str]:
    """`["A=b"]` as a dict. Raises UsageError for what isn't NAME=VALUE or comes twice."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {text}: give NAME=VALUE, such as {option} {example}")
        if name in found:
            raise UsageError(f"{option} {text}: {name} is given twice")
        found[name] = value
    return found


def parameters(given: list[str]) -> dict[str, Any]:
    """`["lr=0.01", "dataset=digits"]` as a dict: JSON where it is, else text. Raises UsageError, as `pairs`."""
    import orjson

    found: dict[str, Any] = {}
    for name, value in pairs("-p", given, "lr=0.01").items():
        try:
            found[name] = orjson.loads(value)
        except ValueError:
            found[name] = value
    return found


def _show_plan(plan: "Plan", as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    spec, starts = plan.spec, plan.expected_start_at
    print_fields(
        [
            ("recipe", spec.recipe),
            ("bundle", spec.bundle),
            ("entrypoint", spec.entrypoint),
            ("hyperparameters", typed(spec.hyperparameters)),
            ("epochs", spec.total_epochs),
            ("hosts", ", ".join(plan.hosts_that_fit) or "none fits now"),
            ("in queue", plan.queue_position),
            ("waits for", plan.pending_reason),
            ("starts", f"{starts:%Y-%m-%d %H:%M} UTC (expected)" if starts else None),
        ]
    )
    print("nothing was submitted; leave --dry-run out to do it")
