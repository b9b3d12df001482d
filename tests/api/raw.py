"""A WebSocket client of bare bytes, which can misbehave in every way."""

import base64
import os
import socket
import struct
from dataclasses import dataclass

from tests.api.serving import ThreadGateway

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


@dataclass(frozen=True, slots=True)
class Frame:
    opcode: int
    payload: bytes

    @property
    def code(self) -> int:
        """Of a close frame."""
        (code,) = struct.unpack("!H", self.payload[:2])
        return int(code)


def handshake(port: int, path: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def path_of(job_id: int, query: str = "") -> str:
    return f"/api/v1/training-jobs/{job_id}/ws{query}"


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame, with a payload under 64 KiB."""
    head = bytes(((0x80 if fin else 0) | opcode,))
    size = bytes((0x80 | len(payload),)) if len(payload) < 126 else b"\xfe" + struct.pack("!H", len(payload))
    mask = os.urandom(4)
    return head + size + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


class RawSocket:
    """Connected, and past the handshake unless it is held back."""

    def __init__(self, gateway: ThreadGateway, job_id: int, query: str = "", *, shake: bool = True) -> None:
        self.request = handshake(gateway.port, path_of(job_id, query))
        self.socket = socket.create_connection(("127.0.0.1", gateway.port))
        self.socket.settimeout(60)
        self._buffer = b""
        if shake:
            self.send(self.request)
            self.shaken()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def shaken(self) -> None:
        """Reads the answer to the handshake."""
        while b"\r\n\r\n" not in self._buffer:
            self._read()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head

    def frame(self) -> Frame:
        """The next frame, whatever it is."""
        while True:
            if len(self._buffer) >= 2:
                size, start = self._buffer[1] & 127, 2
                if size == 126 and len(self._buffer) >= 4:
                    size, start = struct.unpack("!H", self._buffer[2:4])[0], 4
                if len(self._buffer) >= start + size and (self._buffer[1] & 127 != 126 or start == 4):
                    frame = Frame(self._buffer[0] & 15, self._buffer[start : start + size])
                    self._buffer = self._buffer[start + size :]
                    return frame
            self._read()

    def frame_of(self, opcode: int) -> Frame:
        """The next frame of this kind; others are dropped."""
        while (frame := self.frame()).opcode != opcode:
            pass
        return frame

    def _read(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the gateway closed the connection")
        self._buffer += data

    def ended(self) -> bool:
        """Reads to the end of the connection."""
        while self.socket.recv(65536):
            pass
        return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "RawSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
