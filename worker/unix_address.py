"""Unix sockets below folders of any depth: an address has at most 107 bytes, a work folder may be deeper."""

import os
import socket
import struct
from pathlib import Path


def agent_socket(work_dir: Path) -> Path:
    """Where a host's agent listens."""
    return work_dir / "agent.sock"


def peer_pid(connection: socket.socket) -> int:
    """The process that connected (it may be gone by now)."""
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(pid)


def connect_at(connection: socket.socket, path: Path) -> None:
    """Connects to the socket at `path`, addressed by a descriptor of its folder."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def bind_at(listener: socket.socket, path: Path) -> None:
    """Binds a socket at `path`, addressed by a descriptor of its folder."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
