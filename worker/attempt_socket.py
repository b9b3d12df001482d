"""The attempt's socket: where the trainer's ranks report. Packets are checked, strangers are refused."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from worker.process_tree import is_descendant, start_time
from worker.unix_address import bind_at, peer_pid

MAX_PACKET_BYTES = 64 * 1024
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024


class AttemptSocket:
    """Listens on a SEQPACKET socket in the attempt's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "attempt.sock"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        bind_at(self.listener, self.path)
        self.listener.listen(64)
        self.listener.setblocking(False)

    def accept(self, launcher: int, limit: int) -> Iterator[socket.socket]:
        """Connections that wait, at most `limit`: of processes below the attempt's launcher; others are closed.

        A process that has ended since it connected can't be asked any more where it came from; its last words count.
        """
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:  # none waits, or no descriptor is left for it
                return
            pid = peer_pid(connection)
            if limit <= 0 or not (is_descendant(pid, launcher) or start_time(pid) is None):
                connection.close()
                continue
            limit -= 1
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            yield connection

    def close(self) -> None:
        self.listener.close()
        self.path.unlink(missing_ok=True)


def packets(connection: socket.socket, limit: int = 256) -> Iterator[dict[str, Any] | None]:
    """Up to `limit` packets that wait on a connection; None at its end. What is no JSON object is passed over."""
    for _ in range(limit):
        try:
            data = connection.recv(MAX_PACKET_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            yield None
            return
        try:
            packet = orjson.loads(data)
        except orjson.JSONDecodeError:
            continue
        if isinstance(packet, dict):
            yield packet


def inside(folder: Path, name: str) -> Path | None:
    """The regular file `name` directly inside `folder`; None for anything else (a path, a link, nothing there)."""
    if not name or name != os.path.basename(name) or not name.isprintable():
        return None
    path = folder / name
    try:
        return path if path.is_file() and not path.is_symlink() else None
    except OSError:  # a name that no file can have
        return None
