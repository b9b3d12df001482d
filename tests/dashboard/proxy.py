"""A network between browser and gateway that can be cut and mended."""

import contextlib
import socket
import threading
from typing import Self
from urllib.parse import urlsplit


class CuttableProxy:
    """Forwards TCP from any free port of loopback to `url`. Cut: open connections break, new ones are refused."""

    def __init__(self, url: str) -> None:
        target = urlsplit(url)
        self._target = (target.hostname or "localhost", target.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_cut = False
        self._flows = threading.Event()
        self._flows.set()
        self._accepting = threading.Thread(target=self._accept, name="proxy")
        self.url = f"http://localhost:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            for one in self._open:
                _shut(one)

    def swallow(self) -> None:
        """From here on nothing gets through and nothing is closed, as when a cable is pulled; new connections wait."""
        self._flows.clear()

    def mend(self) -> None:
        with self._lock:
            self._is_cut = False
        self._flows.set()

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listener)
        self._listener.close()
        self._accepting.join(10)
        self._flows.set()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._is_cut:
                    client.close()
                    continue
                server = socket.create_connection(self._target, timeout=30)
                server.settimeout(None)
                self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        except OSError:
            pass  # cut, or the other side has gone
        finally:
            with self._lock:
                self._open -= {source, sink}
            for one in (source, sink):
                _shut(one)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):  # already
        one.shutdown(socket.SHUT_RDWR)
