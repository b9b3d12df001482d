"""RFC 6455 as the Autobahn suite's cases have it (by kosoku), against the gateway's own server configuration.

The cases want an echo. It listens as a conversation does, past ASGI; or wakes for that with the client's first bytes;
or it is an application of the usual kind, which is what a socket meets until its checks are done.
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from kosoku import run_fuzzingclient
from starlette.websockets import WebSocketDisconnect

from api import sockets
from api.burst import frame_head
from api.following import Rest
from api.level import Level
from api.light import LightSocket
from api.slots import Slot
from api.sockets import GatewaySocket
from shared.settings import Settings
from tests.api.serving import ThreadGateway

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

# Messages beyond our limit of 64 KiB (9), and compression, which is not offered (12, 13).
NOT_OURS = ["9.*", "12.*", "13.*"]


class Echo:
    """Says back what it hears."""

    def __init__(self, socket: GatewaySocket) -> None:
        self._socket = socket

    def heard_text(self, text: str) -> None:
        payload = text.encode()
        self._socket.write(frame_head(len(payload)) + payload)

    def heard_bytes(self, data: bytes) -> None:
        self._socket.write(b"\x82" + frame_head(len(data))[1:] + data)

    def gone(self) -> None:
        pass


class Asleep(LightSocket):
    """Wakes to listen to an echo."""

    __slots__ = ("_whole",)

    def __init__(self, whole: GatewaySocket) -> None:
        ping = whole.last_ping
        assert ping is not None
        level = Level()
        super().__init__(whole.transport, Rest(Slot(1), level), ping, expires_at=math.inf, active_at=0.0)
        self._whole = whole
        whole.retire()
        self.transport.set_protocol(self)

    def wake(self) -> GatewaySocket:
        config, state = self._whole.config, self._whole.server_state
        woken = GatewaySocket.reopened(config, state, self.transport, self.ping, is_answered=self.is_answered)
        woken.listen(Echo(woken))
        return woken


def echo_app(*_: Any) -> FastAPI:
    app = FastAPI()

    @app.websocket("/past")
    async def past(websocket: WebSocket) -> None:
        await websocket.accept()
        socket = sockets.of(websocket.scope)
        socket.listen(Echo(socket))

    @app.websocket("/woken")
    async def woken(websocket: WebSocket) -> None:
        await websocket.accept()
        socket = sockets.of(websocket.scope)
        socket.listen(Echo(socket))
        Asleep(socket)

    @app.websocket("/application")
    async def application(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await websocket.send({**message, "type": "websocket.send"})
        except WebSocketDisconnect:
            return

    return app


@pytest.fixture
def echo_server(open_settings: Settings) -> Iterator[ThreadGateway]:
    with ThreadGateway(open_settings, make_app=echo_app) as gateway:
        yield gateway


@pytest.mark.parametrize("way", ["past", "woken", "application"])
async def test_the_gateways_sockets_pass_autobahns_cases(echo_server: ThreadGateway, way: str) -> None:
    url = f"ws://127.0.0.1:{echo_server.port}/{way}"
    results = await run_fuzzingclient(url, exclude_cases=NOT_OURS, concurrency=4)
    assert len(results) > 200
    # `run_fuzzingclient` raises at a failed case; a case that acts otherwise than it should is as bad.
    assert {str(result.behavior.value) for result in results} <= {"OK", "NON-STRICT", "INFORMATIONAL"}
