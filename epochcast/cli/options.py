"""The options that every command has, and the client that they lead to."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from epochcast.async_client import AsyncClient
    from epochcast.client import Client

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The server; else EPOCHCAST_URL, else the platform that runs here."),
]
Token = Annotated[
    str | None, typer.Option("--token", metavar="TOKEN", help="Your token; else EPOCHCAST_TOKEN, else that platform's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else.")]
JobId = Annotated[int, typer.Argument(metavar="JOB", min=1, max=2**63 - 1, help="The job's number.")]


def client(url: str | None, token: str | None) -> "Client":
    # Imported here, as everywhere in the commands: help must not wait for an HTTP client.
    from epochcast.client import Client

    return Client(url, token)


def async_client(url: str | None, token: str | None) -> "AsyncClient":
    from epochcast.async_client import AsyncClient

    return AsyncClient(url, token)
