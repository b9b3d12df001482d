"""Processes that are forked before they are needed: each waits to be told, once, what to become."""

import os
import socket
from collections.abc import Sequence

MAX_PACKET, MAX_DESCRIPTORS = 256 * 1024, 253


class Spare:
    """The parent's hold on one that waits. It ends when this is closed, and so when the parent ends."""

    def __init__(self, pid: int, orders: socket.socket) -> None:
        self.pid = pid
        self._orders = orders

    def take(self, packet: bytes, descriptors: Sequence[int]) -> bool:
        """Has it begin, with copies of `descriptors`. False: it is gone."""
        with self._orders:
            try:
                socket.send_fds(self._orders, [packet], list(descriptors))
            except OSError:
                return False
            return True

    def close(self) -> None:
        self._orders.close()


class Waiting:
    """The same in the child."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders

    def order(self) -> tuple[bytes, list[int]]:
        """The packet and the descriptors, when they come. When the parent closes instead, this process ends."""
        with self._orders:
            packet, descriptors, _, _ = socket.recv_fds(self._orders, MAX_PACKET, MAX_DESCRIPTORS)
        if not packet:
            os._exit(0)
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
