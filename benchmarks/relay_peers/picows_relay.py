"""picows: a frame is written to the transport at once. `join`: frames of one read go out in one write.

python -m benchmarks.relay_peers.picows_relay REDIS_PORT FIRST_JOB JOBS [join]
"""

import struct
import sys
from collections import defaultdict

import uvloop
from picows import WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from benchmarks.relay_peers.thin_reader import ThinReader, subscribe

sockets: defaultdict[int, set[WSTransport]] = defaultdict(set)
waiting: defaultdict[int, list[bytes]] = defaultdict(list)


class Socket(WSListener):
    def __init__(self, job_id: int) -> None:
        self.job_id = job_id

    def on_ws_connected(self, transport: WSTransport) -> None:
        sockets[self.job_id].add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        sockets[self.job_id].discard(transport)


def listener(request: WSUpgradeRequest) -> WSListener:
    return Socket(int(request.path.split(b"/")[4]))


def forward(job_id: int, data: bytes) -> None:
    for transport in sockets[job_id]:
        transport.send(WSMsgType.TEXT, data)


def keep(job_id: int, data: bytes) -> None:
    length = len(data)
    waiting[job_id].append(bytes((0x81, length)) if length < 126 else b"\x81\x7e" + struct.pack("!H", length))
    waiting[job_id].append(data)


def forward_joined() -> None:
    for job_id, parts in waiting.items():
        joined = b"".join(parts)
        for transport in sockets[job_id]:
            transport.underlying_transport.write(joined)
    waiting.clear()


async def main() -> None:
    port, first_job, jobs = map(int, sys.argv[1:4])
    reader = ThinReader(keep, forward_joined) if "join" in sys.argv else ThinReader(forward)
    await subscribe(port, first_job, jobs, reader)
    server = await ws_create_server(listener, "127.0.0.1", 0, backlog=2048)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
