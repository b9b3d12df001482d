"""`recipes`, `hosts`, `drain`, `resume`: what can be run, and where."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epochcast.cli.live_table import repaint
from epochcast.cli.options import Json, Token, Url, Watch, client
from epochcast.cli.output import duration, plain, print_json, print_table, table_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from epochcast.answers import Gpu, Host, Recipe, Training


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: epochcast recipes image-classifier")(recipes)
    app.command(epilog="Examples: epochcast hosts, epochcast hosts --watch")(hosts)
    app.command(epilog="Example: epochcast drain gpu-3")(drain)
    app.command(epilog="Example: epochcast resume gpu-3")(resume)


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one's hyperparameters.")] = None,
    url: Url = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List the recipes, or show the hyperparameters of one."""
    with client(url, token) as server:
        found = server.recipe(name) if name is not None else server.recipes()
    if as_json:
        print_json(found)
    elif isinstance(found, list):
        rows = ((recipe.name, recipe.default_epochs, recipe.description or recipe.title) for recipe in found)
        print_table(("recipe", "epochs", "what it does"), rows, nothing="this server has no recipes")
    else:
        _show_recipe(found)


def _show_recipe(recipe: "Recipe") -> None:
    print(f"{plain(recipe.name)}: {plain(recipe.description or recipe.title)}\n")
    properties = recipe.hyperparameters.get("properties", {})
    print_table(
        ("parameter", "type", "default", "what it is"),
        ((name, _type(field), _default(field), field.get("description")) for name, field in properties.items()),
        nothing="it takes no hyperparameters",
    )


def _type(field: dict[str, Any]) -> str:
    """`integer`, `number or null`, `digits | fashion-mnist`: a JSON Schema in a word."""
    if "enum" in field:
        return " | ".join(str(choice) for choice in field["enum"])
    if "const" in field:
        return str(field["const"])
    if "anyOf" in field:
        return " or ".join(_type(choice) for choice in field["anyOf"])
    return str(field.get("type", "any"))


def _default(field: dict[str, Any]) -> object:
    return str(field["default"]) if field.get("default") is not None else None


def _checked(host: str) -> str:
    """Before a server is looked for."""
    from epochcast.async_client import check_host_name

    check_host_name(host)
    return host


HostName = Annotated[
    str, typer.Argument(metavar="HOST", help="Its name, as `epochcast hosts` shows it.", callback=_checked)
]


def drain(host: HostName, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Give a host no new jobs; those that it runs go on. Outlives a restart of its worker."""
    with client(url, token) as server:
        found = server.drain(host)
    if as_json:
        print_json(found)
        return
    jobs = found.jobs
    rest = f"it still has {'job' if len(jobs) == 1 else 'jobs'} {_numbers(jobs)}" if jobs else "it has no job"
    print(f"{plain(host)} gets no new job; {rest}; undo it with: epochcast resume {plain(host)}")


def resume(host: HostName, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Give a drained host jobs again."""
    with client(url, token) as server:
        found = server.resume(host)
    if as_json:
        print_json(found)
        return
    # A host that is away takes none, whatever it is allowed to.
    print(f"{plain(host)} may take jobs again; it is {found.status}")


HOST_COLUMNS = ("host", "status", "heard", "slots", "jobs", "training", "CPU", "memory GiB", "GPUs")


def hosts(watch: Watch = False, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Show the fleet: each host's slots, load and GPUs.

    Heard: how long ago the host last said that it lives. Training: how long ago each of its jobs last reported; a job
    can be stuck on a host that is well.
    """
    with client(url, token) as server:
        if watch:
            repaint(server.hosts, _picture, as_json=as_json)
        found = server.hosts()
    if as_json:
        print_json(found)
        return
    print_table(HOST_COLUMNS, map(_host_row, found), nothing="no host has registered; start a worker")


def _picture(hosts: "Sequence[Host]") -> "RenderableType":
    return table_of(HOST_COLUMNS, map(_host_row, hosts))


def _host_row(host: "Host") -> list[object]:
    percent = host.cpu.percent
    return [
        host.name,
        host.status,
        f"{duration(host.heartbeat_age_s)} ago" if host.heartbeat_age_s is not None else None,
        f"{host.slots.used}/{host.slots.total}",
        _numbers(host.jobs) or None,
        "; ".join(_training(job) for job in host.training) or None,
        f"{host.cpu.cores} cores" + (f", {percent:.0f} %" if percent is not None else ""),
        f"{host.memory.used_gib:g}/{host.memory.total_gib:g}",
        "; ".join(_gpu(gpu) for gpu in host.gpus) or None,
    ]


def _numbers(jobs: list[int]) -> str:
    return ", ".join(str(job) for job in jobs)


def _training(job: "Training") -> str:
    silent = duration(job.silent_s)
    if job.is_stalled:
        return f"{job.job_id}: stalled, silent for {silent}"
    return f"{job.job_id}: {silent} ago" if job.reported_at else f"{job.job_id}: no report for {silent}"


def _gpu(gpu: "Gpu") -> str:
    text = f"{gpu.index}: {gpu.name} {gpu.memory.used_gib:g}/{gpu.memory.total_gib:g} GiB"
    if gpu.quarantined:
        return f"{text}, quarantined"
    busy = f", {gpu.utilisation_percent:.0f} %" if gpu.utilisation_percent is not None else ""
    return f"{text}{busy}, job {gpu.job_id}" if gpu.job_id else f"{text}{busy}"
