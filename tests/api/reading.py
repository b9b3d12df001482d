"""Reads from sockets in tests."""

import asyncio
import json
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

Message = dict[str, Any]


async def receive(socket: ClientConnection, count: int = 1, timeout_s: float = 30) -> list[Message]:
    """The next `count` messages."""
    async with asyncio.timeout(timeout_s):
        return [json.loads(await socket.recv()) for _ in range(count)]


async def drain(socket: ClientConnection, timeout_s: float = 60) -> tuple[list[Message], int, str]:
    """Every message until the close frame, and its code and reason."""
    messages: list[Message] = []
    frame = None
    async with asyncio.timeout(timeout_s):
        while frame is None:
            try:
                messages.append(json.loads(await socket.recv()))
            except ConnectionClosed as closed:
                if closed.rcvd is None:
                    raise AssertionError(f"closed without a close frame after {messages}") from closed
                frame = closed.rcvd
    return messages, frame.code, frame.reason


async def read_all(url: str, **options: Any) -> tuple[list[Message], int, str]:
    """Connects, and reads until the close."""
    async with connect(url, **options) as socket:
        return await drain(socket)


def ids(messages: list[Message]) -> list[str]:
    return [message["id"] for message in messages]
