"""Each row of the close-code table, each way to authenticate and each way to fail at it."""

import asyncio
import base64
import json
import logging
import socket as sockets
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jwt
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from shared import tokens
from shared.settings import Settings
from tests.api.reading import drain, read_all, receive
from tests.api.serving import QUICK, ThreadGateway
from tests.api.training import Training
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

DAY = 86_400


@pytest.fixture
def guarded(sqlite_settings: Settings) -> Iterator[ThreadGateway]:
    """A gateway that wants tokens."""
    with ThreadGateway(sqlite_settings) as gateway:
        yield gateway


def secret_of(settings: Settings) -> str:
    assert settings.secret is not None
    return settings.secret.get_secret_value()


def token(settings: Settings, *scopes: str, sub: str = "alice", **claims: Any) -> str:
    content = {"sub": sub, "iat": int(time.time()), "exp": int(time.time()) + DAY, "scope": " ".join(scopes)}
    return jwt.encode(content | claims, secret_of(settings), algorithm="HS256")


# --- 1008: job and cursor


@pytest.mark.parametrize(
    "job_id", ["999", "0", "-1", "abc", "1e3", "01", "9223372036854775808", "9" * 400, "1%2F2", "%00", "\uff11"]
)
@pytest.mark.parametrize("path", ["ws", "stream"])
async def test_no_such_job(socket_gateway: ThreadGateway, training: Training, job_id: str, path: str) -> None:
    assert await read_all(socket_gateway.url(job_id, path=path)) == ([], 1008, "job not found")


async def test_anothers_job_looks_like_a_missing_one(
    guarded: ThreadGateway, training: Training, sqlite_settings: Settings
) -> None:
    url = guarded.url(training.job_id)
    bob = {"Authorization": f"Bearer {token(sqlite_settings, 'jobs:read', sub='bob')}"}
    assert await read_all(url, additional_headers=bob) == ([], 1008, "job not found")
    admin = {"Authorization": f"Bearer {token(sqlite_settings, 'jobs:read', 'jobs:all', sub='bob')}"}
    async with connect(url, additional_headers=admin) as socket:
        assert (await receive(socket))[0]["status"] == "queued"


@pytest.mark.parametrize("cursor", ["", "x", "1", "1-", "-1", "1-1-1", "1-%201", "01-1", "1-" + "9" * 30, "\uff11-1"])
async def test_invalid_cursor(socket_gateway: ThreadGateway, training: Training, cursor: str) -> None:
    assert await read_all(socket_gateway.url(training.job_id, f"?after={cursor}")) == ([], 1008, "invalid cursor")


# --- 1008: tokens


@pytest.mark.parametrize("way", ["header", "subprotocol", "query"])
async def test_each_way_to_authenticate(
    guarded: ThreadGateway,
    training: Training,
    sqlite_settings: Settings,
    way: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    good = tokens.create("alice", ["jobs:read"], days=1, secret=secret_of(sqlite_settings))
    ways: dict[str, dict[str, Any]] = {
        "header": {"additional_headers": {"Authorization": f"Bearer {good}"}},
        "subprotocol": {"subprotocols": [Subprotocol("Bearer"), Subprotocol(good)]},
        "query": {},
    }
    url = guarded.url(training.job_id, f"?token={good}" if way == "query" else "")
    async with connect(url, logger=logging.getLogger("quiet"), **ways[way]) as socket:
        assert socket.subprotocol == ("Bearer" if way == "subprotocol" else None)
        assert (await receive(socket))[0]["status"] == "queued"
        assert socket.response is not None
        assert good not in str(socket.response.headers)
    server_side = [record.getMessage() for record in caplog.records if record.name != "quiet"]
    assert not [line for line in server_side if good in line]


def _unsigned(settings: Settings) -> str:
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=")
    claims = {"sub": "alice", "iat": int(time.time()), "exp": int(time.time()) + DAY, "scope": "jobs:read"}
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    return f"{header.decode()}.{body.decode()}."


BAD_TOKENS = {
    "alg none": (_unsigned, "invalid token"),
    "wrong key": (
        lambda s: jwt.encode({"sub": "alice", "iat": 1, "exp": 2**31}, "k" * 32, algorithm="HS256"),
        "invalid token",
    ),
    "other algorithm": (
        lambda s: jwt.encode({"sub": "alice", "iat": int(time.time()), "exp": 2**31}, secret_of(s) * 2, "HS512"),
        "invalid token",
    ),
    "expired": (
        lambda s: token(s, "jobs:read", iat=int(time.time()) - 100, exp=int(time.time()) - 10),
        "token expired",
    ),
    "10^30 expiry": (lambda s: token(s, "jobs:read", exp=10**30), "invalid token"),
    "too long a life": (lambda s: token(s, "jobs:read", exp=int(time.time()) + 31 * DAY), "invalid token"),
    "no subject": (lambda s: token(s, "jobs:read", sub=""), "invalid token"),
    "no scope to read": (lambda s: token(s, "jobs:write"), "invalid token"),
    "not a token": (lambda s: "abc", "invalid token"),
    "empty": (lambda s: "", "invalid token"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
@pytest.mark.parametrize("way", ["subprotocol", "query"])
async def test_each_bad_token(
    guarded: ThreadGateway, training: Training, sqlite_settings: Settings, name: str, way: str
) -> None:
    make, reason = BAD_TOKENS[name]
    bad = make(sqlite_settings)
    if way == "query":
        messages, code, said = await read_all(guarded.url(training.job_id, f"?token={bad}"))
    elif bad:
        offered = [Subprotocol("Bearer"), Subprotocol(bad)]
        messages, code, said = await read_all(guarded.url(training.job_id), subprotocols=offered)
    else:
        return  # an empty subprotocol can't be offered
    assert (messages, code, said) == ([], 1008, reason)


async def test_no_token(guarded: ThreadGateway, training: Training) -> None:
    for url in (guarded.url(training.job_id), guarded.url("999"), guarded.fleet_url):
        assert await read_all(url) == ([], 1008, "authentication required")


async def test_a_token_that_expires_on_an_open_socket(
    guarded: ThreadGateway, training: Training, sqlite_settings: Settings
) -> None:
    short = token(sqlite_settings, "jobs:read", exp=int(time.time()) + 5)
    messages, code, reason = await read_all(guarded.url(training.job_id, f"?token={short}"))
    assert len(messages) == 1
    assert (code, reason) == (1008, "token expired")


async def test_a_foreign_origin_gets_403_before_accept(socket_gateway: ThreadGateway, training: Training) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await read_all(socket_gateway.url(training.job_id), origin=Origin("http://evil.example"))
    assert refused.value.response.status_code == 403
    own = Origin(f"http://localhost:{socket_gateway.port}")
    async with connect(socket_gateway.url(training.job_id), origin=own) as socket:
        await receive(socket)


# --- 1013


async def test_the_11th_subscriber_of_a_job(socket_gateway: ThreadGateway, training: Training) -> None:
    url = socket_gateway.url(training.job_id)
    held = [await _accepted(url) for _ in range(10)]
    assert await read_all(url) == ([], 1013, "too many connections")
    last = held.pop()
    assert last is not None
    await last.close()
    async with asyncio.timeout(30):
        while (again := await _accepted(url)) is None:  # the place is given back a moment after the close
            pass
    for socket in [*held, again]:
        assert socket is not None
        await socket.close()


async def _accepted(url: str) -> ClientConnection | None:
    socket = await connect(url)
    try:
        await receive(socket)
    except ConnectionClosed:
        return None
    return socket


async def test_a_subscriber_that_never_reads_is_gone_and_nobody_waits_for_it(
    open_settings: Settings, training: Training
) -> None:
    """With the real time: a send may take 5 s."""
    training.start()
    with ThreadGateway(open_settings, replace(QUICK, send_timeout_s=5.0)) as gateway:
        deaf = _deaf_client(gateway, training.job_id)
        async with connect(gateway.url(training.job_id)) as reading:
            await receive(reading)
            await asyncio.to_thread(wait_until, lambda: gateway.relay.subscribers == 2, "both subscribers")
            started = time.monotonic()
            got_meanwhile = 0
            while gateway.relay.subscribers == 2:
                assert time.monotonic() - started < 90, "the deaf subscriber is still there"
                subscribers = gateway.relay.channels.subscribers(training.job_id)
                is_stalled = any(not subscriber.outbox.is_idle for subscriber in subscribers)
                entry = await asyncio.to_thread(training.say, "x" * 4000)
                while (await receive(reading))[0]["id"] != str(entry.id):
                    pass
                got_meanwhile = got_meanwhile + 1 if is_stalled else 0
        deaf.close()
    # Not how fast (that is for benchmarks), but that nothing waited for the 5 s of the other one.
    assert got_meanwhile > 10


async def test_a_slow_consumer_is_told(open_settings: Settings, training: Training) -> None:
    """It reads again within the time that a close may take, and finds out why it was closed."""
    training.start()
    with ThreadGateway(open_settings, replace(QUICK, send_timeout_s=0.5)) as gateway:
        async with connect(gateway.url(training.job_id), max_queue=1) as socket:
            await receive(socket)
            while gateway.relay.subscribers:
                await asyncio.to_thread(training.say, "x" * 8000)
            _, code, reason = await drain(socket)
    assert (code, reason) == (1013, "slow consumer")


def _deaf_client(gateway: ThreadGateway, job_id: int) -> sockets.socket:
    """Opens a WebSocket and never reads from it."""
    deaf = sockets.create_connection(("127.0.0.1", gateway.port))
    key = base64.b64encode(b"0" * 16).decode()
    deaf.sendall(
        f"GET /api/v1/training-jobs/{job_id}/ws HTTP/1.1\r\nHost: localhost:{gateway.port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    return deaf


async def test_a_silent_deaf_peer_is_dropped_by_pings(open_settings: Settings, training: Training) -> None:
    """Nothing is sent to it, so only the missing pong tells."""
    with ThreadGateway(open_settings, ping_s=0.3) as gateway:
        deaf = _deaf_client(gateway, training.job_id)
        await asyncio.to_thread(wait_until, lambda: gateway.relay.subscribers == 1, "the subscriber")
        await asyncio.to_thread(wait_until, lambda: gateway.relay.subscribers == 0, "its end")
        deaf.close()


# --- 1012, 4408, 1009, 1003


async def test_a_gateway_that_stops_tells_every_socket(open_settings: Settings, training: Training) -> None:
    gateway = ThreadGateway(open_settings)
    with gateway:
        urls = [gateway.url(training.job_id), gateway.fleet_url]
        open_sockets = [await connect(url) for url in urls]
        for socket in open_sockets:
            await receive(socket)
        stopping = threading.Thread(target=gateway.stop)
        stopping.start()
        for socket in open_sockets:
            assert (await drain(socket))[1:] == (1012, "service restart")
        await asyncio.to_thread(stopping.join)


async def test_idle_sockets_are_closed_and_text_from_the_client_keeps_them(
    open_settings: Settings, training: Training
) -> None:
    with ThreadGateway(open_settings, replace(QUICK, idle_timeout_s=3.0), ping_s=1.0) as gateway:
        async with connect(gateway.url(training.job_id)) as talking, connect(gateway.url(training.job_id)) as silent:
            await receive(talking)
            closing = asyncio.create_task(drain(silent))
            while not closing.done():
                await talking.send("ping")
                await asyncio.wait([closing], timeout=0.2)
            assert (await closing)[1:] == (4408, "idle timeout")
            await talking.send("ping")
            assert (await drain(talking))[1:] == (4408, "idle timeout")


@pytest.mark.parametrize(
    ("frame", "code"), [("x" * 64 * 1024, None), ("x" * (64 * 1024 + 1), 1009), (b"binary", 1003), (b"", 1003)]
)
async def test_frames_from_the_client(
    socket_gateway: ThreadGateway, training: Training, frame: str | bytes, code: int | None
) -> None:
    async with connect(socket_gateway.url(training.job_id)) as socket:
        await receive(socket)
        await socket.send(frame)
        if code is None:
            training.start()
            assert (await receive(socket))[0]["type"] == "progress"
        else:
            with pytest.raises(ConnectionClosed) as closed:
                await receive(socket)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == code
