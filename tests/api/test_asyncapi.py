"""The AsyncAPI document against the gateway: its routes, and the messages of real jobs on real sockets."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from fastapi.routing import APIWebSocketRoute
from jsonschema import Draft202012Validator
from websockets.sync.client import connect

import epochcast
from api import stream
from api.asyncapi import MESSAGES, document
from tests import markdown
from tests.platform import Platform

DOCUMENT = orjson.loads(orjson.dumps(document()))


def resolve(reference: str) -> Any:
    found = DOCUMENT
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def references(part: Any) -> Iterator[str]:
    match part:
        case dict():
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
            for below in part.values():
                yield from references(below)
        case list():
            for below in part:
                yield from references(below)


def schema_of(kind: str) -> dict[str, Any]:
    """The payload's schema, with its own properties."""
    found: dict[str, Any] = resolve(resolve(f"#/components/messages/{kind}")["payload"]["$ref"])
    return found


def check(message: dict[str, Any]) -> None:
    """Raises where the message is not what the document says, or has a field that the document doesn't name."""
    schema = schema_of(message["type"])
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(message)
    assert set(message) <= set(schema["properties"])


def test_every_reference_leads_somewhere() -> None:
    found = list(references(DOCUMENT))
    assert found
    for reference in found:
        assert resolve(reference)


def test_the_parts_that_asyncapi_3_requires_are_there() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert DOCUMENT["info"].keys() >= {"title", "version"}
    assert DOCUMENT["operations"].keys() == DOCUMENT["channels"].keys()
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] == "send"
        names = {one["$ref"].rpartition("/")[2] for one in operation["messages"]}
        assert names == set(resolve(operation["channel"]["$ref"])["messages"])
    for name in MESSAGES:
        Draft202012Validator.check_schema(schema_of(name))


def test_its_channels_are_the_gateways_sockets_and_no_other() -> None:
    served = {
        "/api/v1" + route.path.replace(":path", "")
        for route in stream.router.routes
        if isinstance(route, APIWebSocketRoute)
    }
    assert {channel["address"] for channel in DOCUMENT["channels"].values()} == served


def test_the_manuals_examples_are_messages_of_the_document() -> None:
    examples = [orjson.loads(block) for block in markdown.blocks((markdown.DOCS / "messages.md").read_text(), "json")]
    messages = [example for example in examples if "id" in example]
    assert {message["type"] for message in messages} == set(MESSAGES)
    for message in messages:
        check(message)


def received(platform: Platform, path: str) -> list[dict[str, Any]]:
    with connect(f"{platform.url.replace('http', 'ws')}{path}") as socket:
        return [orjson.loads(text) for text in socket]


def test_every_message_of_real_jobs_is_one_of_the_document(platform: Platform, tmp_path: Path) -> None:
    """A job that succeeds, one that fails, and one whose loss is NaN: with their logs, on both sockets of a job."""
    (tmp_path / "boom.py").write_text("print('so far')\nraise ValueError('boom')\n")
    (tmp_path / "nan.py").write_text(
        "import epochcast\nrun = epochcast.init()\n"
        "for epoch in run.epochs():\n    run.report(epoch=epoch, train_loss=float('nan'))\n"
    )
    with epochcast.Client(platform.url) as client:
        quick = {"model": "mlp", "width": 1}
        jobs = [client.submit(recipe="image-classifier", total_epochs=2, hyperparameters=quick)]
        jobs += [client.submit(tmp_path / name, total_epochs=2) for name in ("boom.py", "nan.py")]
        for job in jobs:
            for _ in job.watch():
                pass
    kinds = set()
    for job in jobs:
        for name in ("ws", "stream"):
            messages = received(platform, f"/api/v1/training-jobs/{job.job_id}/{name}?after=0")
            for message in messages:
                check(message)
                kinds.add(message["type"])
    assert kinds == set(MESSAGES)


@pytest.mark.parametrize("field", ["id", "status", "progress", "timestamp", "metrics"])
def test_a_message_that_lacks_a_field_is_none(field: str) -> None:
    [whole] = [message for message in map(orjson.loads, first_example()) if message["type"] == "progress"]
    check(whole)
    del whole[field]
    schema = {**schema_of("progress"), "components": DOCUMENT["components"]}
    assert not Draft202012Validator(schema).is_valid(whole)


def first_example() -> list[str]:
    return markdown.blocks(markdown.section((markdown.DOCS / "messages.md").read_text(), "## `progress`"), "json")[:1]


def test_the_gateway_serves_the_document(platform: Platform) -> None:
    with urllib.request.urlopen(f"{platform.url}/api/v1/asyncapi.json", timeout=30) as answer:
        assert orjson.loads(answer.read()) == DOCUMENT
