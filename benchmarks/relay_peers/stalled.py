"""Subscribers that ask for a job's messages and then read nothing."""

import base64
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# So little fits on the way that the gateway soon sees it.
ROOM_BYTES = 4096


@contextmanager
def sockets(port: int, token: str, job_id: int, count: int) -> Iterator[None]:
    """So many, past their handshake."""
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM_BYTES)
            connection.settimeout(10)
            connection.connect(("127.0.0.1", port))
            connection.sendall(
                f"GET /api/v1/training-jobs/{job_id}/ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
                f"Upgrade: websocket\r\nConnection: Upgrade\r\nAuthorization: Bearer {token}\r\n"
                f"Sec-WebSocket-Key: {base64.b64encode(secrets.token_bytes(16)).decode()}\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            answer = connection.recv(64)
            if b" 101 " not in answer:
                raise RuntimeError(f"the gateway answers {answer!r}")
        yield
