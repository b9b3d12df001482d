"""One Redis subscription read as cheaply as Python can: a protocol that feeds hiredis. For picows and `websockets`."""

import asyncio
import os
from collections.abc import Callable

import hiredis

OnMessage = Callable[[int, bytes], None]


def channel(job_id: int) -> bytes:
    return b"ec:{%d}:live" % job_id


def job_of(name: bytes) -> int:
    return int(name[4:-6])


class ThinReader(asyncio.Protocol):
    """Calls `on_message(job_id, data)`, and `on_read` after all messages of one read."""

    def __init__(self, on_message: OnMessage, on_read: Callable[[], None] = lambda: None) -> None:
        self._on_message = on_message
        self._on_read = on_read
        self._reader = hiredis.Reader()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            if type(answer) is list and answer[0] == b"message":
                self._on_message(job_of(answer[1]), answer[2])
        self._on_read()


async def subscribe(port: int, first_job: int, jobs: int, protocol: ThinReader) -> None:
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: protocol, "127.0.0.1", port)
    names = [channel(first_job + index) for index in range(jobs)]
    for words in ([b"AUTH", os.environ["REDIS_PASSWORD"].encode()], [b"SUBSCRIBE", *names]):
        transport.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
