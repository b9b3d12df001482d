"""Logging of every process: one line an event, times in UTC, to stderr, and no token in any of them."""

import logging
import re
import sys
import warnings
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRETS = re.compile(
    r"(?P<query>[?&;]token=|\btoken=)[^&\s\"']+"
    r"|(?P<scheme>\bbearer[ ,]+)[^\s\"',]+"
    # A JWT wherever it stands, such as in a traceback or a driver's message.
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` with every token replaced."""
    return _SECRETS.sub(lambda found: (found["query"] or found["scheme"] or "") + "[redacted]", text)


def configure(process: str, *, quiet: bool = False) -> None:
    """Sends structlog, uvicorn (its access log included) and every library's logger through one redactor.

    `quiet`: without the lines that uvicorn writes for each request and connection. Called by entry points only.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(process, shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
    # These say at INFO what our own messages say once.
    for name in ("kombu", "celery", "amqp", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Celery warns about root because of pickle, which our workers don't accept.
    warnings.filterwarnings("ignore", message=".*superuser privileges.*")


def _formatter(process: str, shared: list[structlog.typing.Processor]) -> logging.Formatter:
    def name_process(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process
        return event

    def render(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
        return redact(_line(event))

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            name_process,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            render,
        ],
    )


_render_rest = structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "process", "event"])


def _line(event: MutableMapping[str, Any]) -> str:
    """Key=value pairs; a traceback follows on lines of its own, where people can read it."""
    traceback = event.pop("exception", None)
    line = str(_render_rest(None, "", event))
    return f"{line}\n{traceback}" if traceback else line
