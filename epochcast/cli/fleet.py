"""`recipes`, `hosts`, `drain`, `resume`: what can be run, and where."""

from typing import Annotated, Any

import typer

from epochcast.cli.options import Json, Token, Url, client
from epochcast.cli.output import duration, plain, print_json, print_table


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: epochcast recipes image-classifier")(recipes)
    app.command(epilog="Example: epochcast hosts")(hosts)
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
    elif isinstance(found, dict):
        _show_recipe(found)
    else:
        rows = ((recipe.get("name"), recipe.get("default_epochs"), _summary(recipe)) for recipe in found)
        print_table(("recipe", "epochs", "what it does"), rows, nothing="this server has no recipes")


def _summary(recipe: dict[str, Any]) -> object:
    return recipe.get("description") or recipe.get("title")


def _show_recipe(recipe: dict[str, Any]) -> None:
    print(f"{plain(recipe.get('name'))}: {plain(_summary(recipe) or '')}\n")
    schema = recipe.get("hyperparameters") or {}
    properties = schema.get("properties", {})
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
    from epochcast.client import check_host_name

    check_host_name(host)
    return host


Host = Annotated[
    str, typer.Argument(metavar="HOST", help="Its name, as `epochcast hosts` shows it.", callback=_checked)
]


def drain(host: Host, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Give a host no new jobs; those that it runs go on. Outlives a restart of its worker."""
    with client(url, token) as server:
        found = server.drain(host)
    if as_json:
        print_json(found)
        return
    jobs = found.get("jobs") or []
    rest = f"it still has {'job' if len(jobs) == 1 else 'jobs'} {_numbers(jobs)}" if jobs else "it has no job"
    print(f"{plain(host)} gets no new job; {rest}; undo it with: epochcast resume {plain(host)}")


def resume(host: Host, url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Give a drained host jobs again."""
    with client(url, token) as server:
        found = server.resume(host)
    if as_json:
        print_json(found)
        return
    # A host that is away takes none, whatever it is allowed to.
    print(f"{plain(host)} may take jobs again; it is {plain(found.get('status'))}")


def hosts(url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Show the fleet: each host's slots, load and GPUs.

    Heard: how long ago the host last said that it lives. Training: how long ago each of its jobs last reported; a job
    can be stuck on a host that is well.
    """
    with client(url, token) as server:
        found = server.hosts()
    if as_json:
        print_json(found)
        return
    columns = ("host", "status", "heard", "slots", "jobs", "training", "CPU", "memory GiB", "GPUs")
    print_table(columns, (_host_row(host) for host in found), nothing="no host has registered; start a worker")


def _host_row(host: dict[str, Any]) -> list[object]:
    cpu, percent = host["cpu"]["cores"], host["cpu"].get("percent")
    return [
        host["name"],
        host["status"],
        f"{duration(age)} ago" if (age := host.get("heartbeat_age_s")) is not None else None,
        f"{host['slots']['used']}/{host['slots']['total']}",
        _numbers(host.get("jobs", [])) or None,
        "; ".join(_training(job) for job in host.get("training", [])) or None,
        f"{cpu} cores" + (f", {percent:.0f} %" if percent is not None else ""),
        f"{host['memory']['used_gib']:g}/{host['memory']['total_gib']:g}",
        "; ".join(_gpu(gpu) for gpu in host.get("gpus", [])) or None,
    ]


def _numbers(jobs: list[int]) -> str:
    return ", ".join(str(job) for job in jobs)


def _training(job: dict[str, Any]) -> str:
    silent = duration(job["silent_s"])
    if job.get("is_stalled"):
        return f"{job['job_id']}: stalled, silent for {silent}"
    return f"{job['job_id']}: {silent} ago" if job.get("reported_at") else f"{job['job_id']}: no report for {silent}"


def _gpu(gpu: dict[str, Any]) -> str:
    memory = gpu["memory"]
    text = f"{gpu['index']}: {gpu['name']} {memory['used_gib']:g}/{memory['total_gib']:g} GiB"
    if gpu.get("quarantined"):
        return f"{text}, quarantined"
    return f"{text}, job {gpu['job_id']}" if gpu.get("job_id") else text
