"""Processes that are forked before they are needed: each waits to be told, once, what to become."""

import os
import signal
import socket
from collections.abc import Iterable, Sequence

MAX_PACKET, MAX_DESCRIPTORS = 256 * 1024, 253
BEGINS_WITHIN_S = 1.0


class Spare:
    """The parent's hold on one that waits, and that ends when the parent does."""

    def __init__(self, pid: int, orders: socket.socket) -> None:
        self.pid = pid
        self._orders = orders

    def take(self, packet: bytes, descriptors: Sequence[int]) -> bool:
        """Has it begin, with copies of `descriptors`. False: it is gone, or frozen and so ended."""
        with self._orders:
            self._orders.settimeout(BEGINS_WITHIN_S)
            try:
                socket.send_fds(self._orders, [packet], list(descriptors))
                return self._orders.recv(1) != b""
            except TimeoutError:
                os.kill(self.pid, signal.SIGKILL)
                return False
            except OSError:
                return False


class Waiting:
    """The same in the child."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders

    def order(self, blocking: Iterable[signal.Signals] = ()) -> tuple[bytes, list[int]]:
        """The packet and the descriptors, when they come. When the parent closes instead, this process ends.

        `blocking`: signals that are for what begins now, and wait for it; none that came before does.
        """
        with self._orders:
            packet, descriptors, _, _ = socket.recv_fds(self._orders, MAX_PACKET, MAX_DESCRIPTORS)
            if not packet:
                os._exit(0)
            signal.pthread_sigmask(signal.SIG_BLOCK, blocking)
            self._orders.send(b"1")
        return packet, descriptors

    def close(self) -> None:
        """In a child that waits for something else."""
        self._orders.close()


def fork_spare() -> Spare | Waiting:
    """Like `os.fork`: in the parent a Spare, in the child a Waiting. Raises OSError."""
    orders, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        orders.close()
        return Waiting(far_end)
    far_end.close()
    return Spare(pid, orders)
