"""What the dashboard's source says of the gateway's answers and messages, field by field against OpenAPI."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from api.app import create_app
from shared.settings import Settings
from tests.dashboard.building import SOURCE

TYPES = (SOURCE / "src" / "rest" / "types.ts").read_text()
MESSAGES = "".join((SOURCE / "src" / "stream" / name).read_text() for name in ("messages.ts", "snapshot.ts"))
# By interface: what OpenAPI calls it.
NAMES = {
    "Job": "TrainingJob",
    "Spec": "TrainingJobSpec",
    "Placement": "HostPlacement",
    "Model": "ModelRecord",
    "Failure": "Error",
}
SAME = (
    "Resources", "Attempt", "Artifact", "Host", "Slots", "Cpu", "Gpu", "Memory", "Training", "Recipe", "Plan",
    "Bundle", "JobError", "GpuMemory", "Progress", "Log", "Complete",
)  # fmt: skip
# OpenAPI promises any object; the dashboard reads what our own gateway writes.
CLOSER = {("Gpu", "users"), ("Host", "versions"), ("Recipe", "hyperparameters")}


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    found: dict[str, Any] = create_app(Settings.model_validate({"auth": "none"})).openapi()["components"]["schemas"]
    return found


@pytest.mark.parametrize("interface", [*NAMES, *SAME])
def test_an_interface_says_what_openapi_says(schemas: dict[str, Any], interface: str) -> None:
    properties = schemas[NAMES.get(interface, interface)]["properties"]
    fields = dict(fields_of(interface))
    assert fields.keys() == properties.keys()
    for name, (text, is_optional) in fields.items():
        if (interface, name) in CLOSER:
            continue
        ours, theirs = alternatives(text), set(kinds(properties[name], schemas))
        if is_optional:  # absent rather than null
            theirs -= {"null"}
        assert all(any(covers(one, other) for one in ours) for other in theirs), f"{name}: {text}, and not {theirs}"
        assert all(any(covers(one, other) for other in theirs) for one in ours), f"{name}: {text}, and not {theirs}"


def fields_of(interface: str) -> Iterator[tuple[str, tuple[str, bool]]]:
    """Each field's type as it is written, and whether it can be absent; those of what it extends too."""
    found = re.search(
        rf"interface {interface} (?:extends (\w+) )?\{{\n(.*?)^\}}", TYPES + MESSAGES, re.MULTILINE | re.DOTALL
    )
    assert found is not None, interface
    if found[1]:
        yield from fields_of(found[1])
    for name, optional, text in re.findall(r"^  readonly (\w+)(\??): (.*);$", found[2], re.MULTILINE):
        yield name, (text, bool(optional))


def alternatives(text: str) -> set[str]:
    """The members of a union, aliases written out, without `readonly`."""
    alias = re.search(rf"^export type {re.escape(text)} =(.*?);$", TYPES + MESSAGES, re.MULTILINE | re.DOTALL)
    if alias:
        text = alias[1]
    text = re.sub(r"\breadonly ", "", re.sub(r"Readonly<(.*)>$", r"\1", " ".join(text.split())))
    members, depth = [""], 0
    for part in re.split(r"([<>()|])", text):
        depth += {"<": 1, "(": 1, ">": -1, ")": -1}.get(part, 0)
        if part == "|" and depth == 0:
            members.append("")
        else:
            members[-1] += part
    names = {member.strip() for member in members} - {""}
    return names if names == {text} else {one for name in names for one in alternatives(name)}


def kinds(schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    """A schema as TypeScript writes it, one alternative after the other."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if "properties" in schemas[name]:
            yield next((ours for ours, theirs in NAMES.items() if theirs == name), name)
        else:
            yield from kinds(schemas[name], schemas)
    elif "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from kinds(one, schemas)
    elif "enum" in schema or "const" in schema:
        yield from (f"'{value}'" for value in schema.get("enum", [schema.get("const")]))
    else:
        yield kind(schema, schemas)


def kind(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    def union(inner: dict[str, Any]) -> str:
        return " | ".join(kinds(inner, schemas))

    match schema:
        case {"type": "integer" | "number"}:
            return "number"
        case {"type": "array", "items": items}:
            return f"{union(items)}[]"
        case {"type": "object", "additionalProperties": dict(inner)}:
            return f"Record<string, {union(inner)}>"
        case {"type": "object"}:
            return "Record<string, unknown>"
        case {"type": str(name)}:
            return name
        case _:
            return "unknown"


def covers(ours: str, theirs: str) -> bool:
    """Ours may be wider: any text for one of some words, `unknown` for whatever there is."""
    return (
        ours in (theirs, "unknown")
        or (ours == "string" and theirs.startswith("'"))
        or (ours == "unknown[]" and theirs.endswith("[]"))
    )
