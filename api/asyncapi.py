"""The socket's contract as an AsyncAPI 3.0 document, made from the code: message models, routes and close codes.

OpenAPI can't describe a WebSocket; this does, at `/api/v1/asyncapi.json`, beside `/api/v1/openapi.json`.
"""

from functools import cache
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import epochcast
from api import closes
from api.closes import Close
from epochcast.events import Complete, Error, Log, Progress
from epochcast.jobs import TERMINAL

MESSAGES: dict[str, type[BaseModel]] = {"progress": Progress, "log": Log, "complete": Complete, "error": Error}
CHANNELS = {
    "job": ("/api/v1/training-jobs/{job_id}/ws", "One job: its state now, then every message, then close 1000."),
    "jobStream": ("/api/v1/training-jobs/{job_id}/stream", "The same as `…/ws`, under its other name."),
    "jobs": ("/api/v1/training-jobs/ws", "All jobs that the token may see, without log lines; never ends by itself."),
}
# Left out where they say nothing (`epochcast.events.encode`), unlike the fields that are null then.
_SOMETIMES = {"non_finite", "resync"}

router = APIRouter()


@router.get("/asyncapi.json", include_in_schema=False)
async def asyncapi() -> dict[str, Any]:
    """As public as `openapi.json`: it holds nothing of anybody's jobs."""
    return document()


@cache
def document() -> dict[str, Any]:
    schemas = _schemas()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "epochcast",
            "version": epochcast.__version__,
            "description": "Training jobs, live. Clients should pass over fields that they don't know.",
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(name, address, text) for name, (address, text) in CHANNELS.items()},
        "operations": {name: _operation(name) for name in CHANNELS},
        "components": {
            "schemas": schemas,
            "messages": {name: _message(name, model) for name, model in MESSAGES.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
        "x-close-codes": _close_codes(),
    }


def _messages_of(channel: str) -> list[str]:
    return [name for name in MESSAGES if not (channel == "jobs" and name == "log")]


def _channel(name: str, address: str, text: str) -> dict[str, Any]:
    query: dict[str, Any] = {"token": {"type": "string", "description": "The token, where no header can be set."}}
    channel: dict[str, Any] = {
        "address": address,
        "description": text,
        "messages": {one: {"$ref": f"#/components/messages/{one}"} for one in _messages_of(name)},
    }
    if "{job_id}" in address:
        channel["parameters"] = {"job_id": {"description": "The job's number."}}
        query["after"] = {
            "type": "string",
            "description": "A message's `id`: every later message comes first. `0`: the whole history.",
        }
    channel["bindings"] = {
        "ws": {"method": "GET", "query": {"type": "object", "properties": query}, "bindingVersion": "0.1.0"}
    }
    return channel


def _operation(channel: str) -> dict[str, Any]:
    return {
        "action": "send",
        "summary": "What the gateway sends; any text from a client only keeps the connection awake.",
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in _messages_of(channel)],
        "security": [{"$ref": "#/components/securitySchemes/token"}],
    }


def _message(name: str, model: type[BaseModel]) -> dict[str, Any]:
    return {
        "name": name,
        "title": model.__name__,
        "summary": (model.__doc__ or "").splitlines()[0],
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
    }


def _schemas() -> dict[str, Any]:
    """As the messages are sent: every field is there, but for two that are left out where they say nothing."""
    _, definitions = models_json_schema(
        [(model, "serialization") for model in MESSAGES.values()], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = definitions["$defs"]
    for model in MESSAGES.values():
        schema = schemas[model.__name__]
        schema["required"] = [name for name in schema["properties"] if name not in _SOMETIMES]
    return schemas


def _close_codes() -> list[dict[str, Any]]:
    known = [close for close in vars(closes).values() if isinstance(close, Close)]
    known += [closes.finished(status) for status in TERMINAL]
    pairs = sorted((close.code, close.reason) for close in known)
    return [{"code": code, "reason": reason} for code, reason in pairs]
