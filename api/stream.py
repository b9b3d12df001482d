"""The sockets: `/ws` and `/stream` of a job, and the fleet's; what is checked in which order, and how they close."""

import re

import structlog
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketDisconnected

from api import sockets
from api.auth import SCOPE_TO_READ, Authenticator, MissingToken, visible_to
from api.closes import (
    AUTHENTICATION_REQUIRED,
    INVALID_CURSOR,
    INVALID_TOKEN,
    JOB_NOT_FOUND,
    TOKEN_EXPIRED,
    UNAVAILABLE,
    Close,
    Refused,
)
from api.conversation import Conversation, Work
from api.following import Following
from api.relay import Relay
from epochcast.events import EventId
from epochcast.jobs import MAX_JOB_ID, TrainingJob
from shared.database import DatabaseUnavailable
from shared.errors import JobNotFound
from shared.tokens import ExpiredToken, Identity, KeysUnavailable, TokenError

logger = structlog.get_logger(__name__)
router = APIRouter(prefix="/training-jobs")

_JOB_ID = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)


@router.websocket("/ws")
async def follow_fleet(websocket: WebSocket) -> None:
    """All jobs that the token may see, without their log lines."""
    await _accept(websocket)
    try:
        identity = await _identify(websocket)
    except Refused as refused:
        await _close(websocket, refused.close)
        return
    relay = _relay(websocket)
    _converse(websocket, identity, lambda peer: relay.follow_fleet(peer, visible_to(identity)))


# `:path`, so that a malformed id with slashes in it is answered like any other.
@router.websocket("/{job_id:path}/ws")
@router.websocket("/{job_id:path}/stream")
async def follow_job(websocket: WebSocket, job_id: str) -> None:
    """One job: its state now (or all that came after `?after=`), then every message until its terminal one."""
    # Accepted whatever follows: a refusal before that is HTTP 403, of which a browser shows only code 1006.
    await _accept(websocket)
    try:
        identity = await _identify(websocket)
        record = await _find(websocket, job_id, identity)
        after = _cursor(websocket)
    except Refused as refused:
        await _close(websocket, refused.close)
        return
    following = _relay(websocket).following(record.job_id)
    _converse(websocket, identity, lambda peer: following.begin_in_place(peer, record, after), following)


async def _accept(websocket: WebSocket) -> None:
    offered = websocket.scope.get("subprotocols") or []
    # Answered by its name alone: the other subprotocol is the token.
    await websocket.accept(subprotocol=next((name for name in offered if name.lower() == "bearer"), None))


async def _identify(websocket: WebSocket) -> Identity:
    authenticator: Authenticator = websocket.app.state.authenticator
    try:
        identity = await authenticator.identify(websocket)
    except MissingToken:
        raise Refused(AUTHENTICATION_REQUIRED) from None
    except ExpiredToken:
        raise Refused(TOKEN_EXPIRED) from None
    except KeysUnavailable:
        raise Refused(UNAVAILABLE) from None
    except TokenError:
        raise Refused(INVALID_TOKEN) from None
    if SCOPE_TO_READ not in identity.scopes:
        raise Refused(INVALID_TOKEN)
    return identity


async def _find(websocket: WebSocket, job_id: str, identity: Identity) -> TrainingJob:
    if _JOB_ID.fullmatch(job_id) is None or int(job_id) > MAX_JOB_ID:
        raise Refused(JOB_NOT_FOUND)
    try:
        return await _relay(websocket).find(int(job_id), visible_to(identity))
    except JobNotFound:
        raise Refused(JOB_NOT_FOUND) from None
    except DatabaseUnavailable as error:
        logger.warning("socket refused: SQL is away", error=str(error))
        raise Refused(UNAVAILABLE) from None


def _cursor(websocket: WebSocket) -> EventId | None:
    text = websocket.query_params.get("after")
    try:
        return None if text is None else EventId.parse(text)
    except ValueError:
        raise Refused(INVALID_CURSOR) from None


def _relay(websocket: WebSocket) -> Relay:
    relay: Relay = websocket.app.state.relay
    return relay


def _converse(websocket: WebSocket, identity: Identity, work: Work, following: Following | None = None) -> None:
    """From here on the socket lives without its route."""
    Conversation(sockets.of(websocket.scope), _relay(websocket), identity.expires_at, work, following)


async def _close(websocket: WebSocket, close: Close) -> None:
    try:
        await websocket.close(close.code, close.reason)
    except (WebSocketDisconnect, WebSocketDisconnected):
        logger.debug("the peer was gone before its close frame", code=close.code)
