"""The options that every command has, and the client that they lead to."""

from typing import TYPE_CHECKING, Annotated

import typer

from epochcast.cli.output import plain

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
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it live until Ctrl-C; needs a terminal.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else.")]
COMPLETION_S = 2.0


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """For the shell: the newest jobs that begin so. None where no server answers: the shell must not show an error."""
    from epochcast.client import Client
    from epochcast.errors import EpochcastError

    try:
        with Client(timeout_s=COMPLETION_S) as server:
            found = server.jobs(limit=100)
    except EpochcastError:
        return []
    texts = {str(job.job_id): plain(f"{job.name}, {job.status}") for job in found}
    return [(number, text) for number, text in texts.items() if number.startswith(incomplete)]


JobId = Annotated[
    int,
    typer.Argument(metavar="JOB", min=1, max=2**63 - 1, help="The job's number.", autocompletion=complete_job),
]


def client(url: str | None, token: str | None) -> "Client":
    # Imported here, as everywhere in the commands: help must not wait for an HTTP client.
    from epochcast.client import Client

    return Client(url, token)


def async_client(url: str | None, token: str | None) -> "AsyncClient":
    from epochcast.async_client import AsyncClient

    return AsyncClient(url, token)
