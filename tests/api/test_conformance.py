"""RFC 6455 as the Autobahn suite's cases have it (by kosoku), against the gateway's own server configuration.

The cases want an echo. It listens as a conversation does, past ASGI; or it is an application of the usual kind, which
is what a socket meets until its checks are done.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from kosoku import run_fuzzingclient
from starlette.websockets import WebSocketDisconnect

from api import sockets
from api.burst import frame_head
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


def echo_app(*_: Any) -> FastAPI:
    app = FastAPI()

    @app.websocket("/past")
    async def past(websocket: WebSocket) -> None:
        await websocket.accept()
        socket = sockets.of(websocket.scope)
        socket.listen(Echo(socket))

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


@pytest.mark.parametrize("way", ["past", "application"])
async def test_the_gateways_sockets_pass_autobahns_cases(echo_server: ThreadGateway, way: str) -> None:
    url = f"ws://127.0.0.1:{echo_server.port}/{way}"
    results = await run_fuzzingclient(url, exclude_cases=NOT_OURS, concurrency=4)
    assert len(results) > 200
    # `run_fuzzingclient` raises at a failed case; a case that acts otherwise than it should is as bad.
    assert {str(result.behavior.value) for result in results} <= {"OK", "NON-STRICT", "INFORMATIONAL"}
