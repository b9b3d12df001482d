"""`recipes` and `hosts`: what can be run, and where."""

from typing import Annotated, Any

import typer

from epochcast.cli.options import Json, Token, Url, client
from epochcast.cli.output import plain, print_json, print_table


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: epochcast recipes image-classifier")(recipes)
    app.command(epilog="Example: epochcast hosts")(hosts)


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


def hosts(url: Url = None, token: Token = None, as_json: Json = False) -> None:
    """Show the fleet: each host's slots, load and GPUs."""
    with client(url, token) as server:
        found = server.hosts()
    if as_json:
        print_json(found)
        return
    columns = ("host", "status", "slots", "jobs", "CPU", "memory GiB", "GPUs")
    print_table(columns, (_host_row(host) for host in found), nothing="no host has registered; start a worker")


def _host_row(host: dict[str, Any]) -> list[object]:
    cpu, percent = host["cpu"]["cores"], host["cpu"].get("percent")
    return [
        host["name"],
        host["status"],
        f"{host['slots']['used']}/{host['slots']['total']}",
        ", ".join(str(job) for job in host.get("jobs", [])) or None,
        f"{cpu} cores" + (f", {percent:.0f} %" if percent is not None else ""),
        f"{host['memory']['used_gib']:g}/{host['memory']['total_gib']:g}",
        "; ".join(_gpu(gpu) for gpu in host.get("gpus", [])) or None,
    ]


def _gpu(gpu: dict[str, Any]) -> str:
    memory = gpu["memory"]
    text = f"{gpu['index']}: {gpu['name']} {memory['used_gib']:g}/{memory['total_gib']:g} GiB"
    if gpu.get("quarantined"):
        return f"{text}, quarantined"
    return f"{text}, job {gpu['job_id']}" if gpu.get("job_id") else text
