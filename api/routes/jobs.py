"""Training jobs: submit, list, get, stop, restart."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.exceptions import RedisError
from starlette.background import BackgroundTask
from starlette.responses import Response

from api import connections
from api.auth import Reader, Writer, visible_to
from api.bodies import read_json
from api.gateway import Gateway, Here
from api.plan import plan
from api.polls import LongPoll, PolledJob
from api.problems import wrong_field, wrong_fields
from api.routes.parameters import After, Cursor, JobId, Limit, Wait, Word, event_id
from api.snapshots import Answer, encode, read
from api.submission import check_entrypoint, idempotency_key, resolve
from api.telemetry import stays_open
from epochcast.answers import Plan
from epochcast.events import EventId
from epochcast.jobs import Status, TrainingJob, TrainingJobSpec
from shared.event_log import nudge_channel
from shared.queries import JobFilter

router = APIRouter(prefix="/training-jobs", tags=["training jobs"])

ANNOUNCED_S = 1.0


def json_response(content: bytes, status: int = 200, **more: Any) -> Response:
    return Response(content, status, media_type="application/json", **more)


class JobPage(BaseModel):
    items: list[TrainingJob]
    next_cursor: str | None


@router.post(
    "",
    status_code=201,
    response_model=TrainingJob,
    responses={200: {"model": Plan, "description": "With `dry_run`: what would happen."}},
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": TrainingJobSpec.model_json_schema()}}}},
)
async def submit(
    request: Request,
    gateway: Here,
    identity: Writer,
    dry_run: bool = False,
    key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> Response:
    """Stores the job and answers; a dispatcher does the rest, so that no broker can slow or fail a submission."""
    content = await read_json(request)
    if content is None:
        raise wrong_field("body", 'is empty; send a job, for example {"recipe": "image-classifier"}')
    spec = resolve(content)
    if spec.bundle is not None:
        check_entrypoint(spec, await gateway.record(gateway.bundles.paths, spec.bundle, identity.owner))
    if dry_run:
        limits = gateway.settings.running_per_owner, gateway.settings.reserve_after_s
        found = await gateway.record(plan, gateway.database, spec, identity.owner, *limits)
        return json_response(orjson.dumps(found))
    named = idempotency_key(key, content)
    job, _is_new = await gateway.record(gateway.store.create, spec, identity.owner, named)
    gateway.dispatcher.wake()
    return json_response(encode(job), 201, headers={"Location": f"/api/v1/training-jobs/{job.job_id}"})


@router.get("", response_model=JobPage)
async def list_jobs(
    gateway: Here,
    identity: Reader,
    status: Status | None = None,
    owner: Word = None,
    tag: Word = None,
    recipe: Word = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Newest first."""
    wanted = JobFilter(status=status, owner=owner, tag=tag, recipe=recipe, visible_to=visible_to(identity))
    page = await gateway.record(gateway.queries.jobs, wanted, limit, cursor)
    return json_response(JobPage(items=page.items, next_cursor=page.next_cursor).model_dump_json().encode())


@router.get("/{job_id}", response_model=TrainingJob)
async def get(
    request: Request,
    gateway: Here,
    identity: Reader,
    job_id: JobId,
    after: After = None,
    wait: Wait = 0,
    known: Annotated[str | None, Header(alias="If-None-Match", max_length=1000)] = None,
) -> Response:
    """The job now: what the document's polling loop reads.

    `wait`: if it has no news, answers at its next change, or after so many seconds. News is what came after the event
    `after`, else another state than the one that If-None-Match names, else anything. An ended job is answered at once.
    """
    owner = await gateway.check_owner(job_id, identity)
    cursor = None if after is None else event_id(after)
    if wait > 0:
        return (await _news(request, gateway.polls.follow(job_id, owner), cursor, known, wait)).response(known)
    polled = gateway.polls.asked(job_id, owner)
    answer = await read(gateway, job_id) if polled is None else polled.answer or await polled.read()
    return answer.response(known)


async def _news(request: Request, polled: PolledJob, after: EventId | None, known: str | None, wait_s: float) -> Answer:
    stays_open(request.scope)
    tag = known.encode() if known is not None else None
    with LongPoll(polled, wait_s, connections.of(request.scope)) as poll:
        while True:
            poll.listen()
            answer = polled.answer or await polled.read_together()
            if poll.is_over or answer.status.is_terminal or _is_news(answer, after, tag):
                return answer
            if after is None and tag is None:
                after = answer.last
            await poll.change()


def _is_news(answer: Answer, after: EventId | None, tag: bytes | None) -> bool:
    if after is not None:
        return answer.last > after
    return tag is not None and not answer.is_known(tag)


@router.post("/{job_id}/stop", status_code=202, response_model=TrainingJob)
async def stop(gateway: Here, identity: Writer, job_id: JobId) -> Response:
    """Asks the job to stop; asking again changes nothing."""
    job = await gateway.record(gateway.store.request_stop, job_id, visible_to(identity))
    gateway.dispatcher.wake()
    # After the answer: the flag in SQL is what counts, the nudge only makes it quick.
    return json_response(encode(job), 202, background=BackgroundTask(_nudge, gateway, job))


async def _nudge(gateway: Gateway, job: TrainingJob) -> None:
    if job.status != Status.RUNNING:
        return
    for host in job.hosts:
        try:
            await gateway.redis.publish(nudge_channel(host.name), str(job.job_id))
        except RedisError:
            return  # the supervisor sees the flag in its next heartbeat


class Restart(BaseModel):
    """The body of a restart; it may be left out."""

    model_config = ConfigDict(extra="forbid")

    from_scratch: bool = Field(default=False, strict=True)


@router.post(
    "/{job_id}/restart",
    response_model=TrainingJob,
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": Restart.model_json_schema()}}}},
)
async def restart(request: Request, gateway: Here, identity: Writer, job_id: JobId) -> Response:
    """Queues a failed or stopped job again; answers once pollers and subscribers can see it, within a second."""
    content = await read_json(request)
    try:
        wanted = Restart.model_validate(content if content is not None else {})
    except ValidationError as error:
        raise wrong_fields(error) from None
    job = await gateway.record(
        gateway.store.restart, job_id, from_scratch=wanted.from_scratch, visible_to=visible_to(identity)
    )
    gateway.dispatcher.wake()
    await _announced(gateway, job)
    # The feed says so too, maybe a moment after this answer.
    gateway.polls.forget(job_id)
    return json_response(encode(job))


async def _announced(gateway: Gateway, job: TrainingJob) -> None:
    try:
        await gateway.redis.ping()
    except RedisError:
        return  # nothing can be announced, and readers are answered from SQL
    first = EventId(job.generation, 1)
    await gateway.record(gateway.store.wait_announced, job.job_id, first, ANNOUNCED_S)
