"""Path and query parameters that several routes share."""

import re
from typing import Annotated, Any

from fastapi import Header, Path, Query
from pydantic import BeforeValidator

from api.problems import Problem
from epochcast.events import BEFORE_ALL, EventId
from epochcast.jobs import MAX_JOB_ID


def plain_number(value: Any) -> Any:
    # Pydantic also takes "1_0", "1.0" and " 1", which would give one job several addresses.
    if isinstance(value, str) and not re.fullmatch("[1-9][0-9]{0,18}", value, re.ASCII):
        raise ValueError("not an id")
    return value


JobId = Annotated[int, Path(ge=1, le=MAX_JOB_ID, description="outside 1..2^63-1: 404"), BeforeValidator(plain_number)]
ModelId = Annotated[int, Path(ge=1, le=MAX_JOB_ID), BeforeValidator(plain_number)]
ArtifactId = Annotated[int, Path(ge=1, le=MAX_JOB_ID), BeforeValidator(plain_number)]
QueryJobIds = Annotated[
    list[Annotated[int, BeforeValidator(plain_number), Query(ge=1, le=MAX_JOB_ID)]],
    Query(alias="job_id", min_length=1, max_length=100),
]

Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(max_length=100, description="next_cursor of the page before")]
# NUL can't be stored as text anywhere, and PostgreSQL refuses even to compare with it.
Word = Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00-\x1f]+$")]
After = Annotated[str | None, Query(max_length=50, description="an event id such as 2-46, or 0 for the beginning")]

Wait = Annotated[float, Query(ge=0, le=60, description="seconds to wait for news before answering without any")]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=50, description="instead of after")]


def event_id(after: str | None, default: EventId = BEFORE_ALL) -> EventId:
    """The cursor in `?after=`. Raises a 422 problem."""
    if after is None:
        return default
    try:
        return EventId.parse(after)
    except ValueError as error:
        raise Problem(422, "invalid_cursor", f"after: {error}") from None
