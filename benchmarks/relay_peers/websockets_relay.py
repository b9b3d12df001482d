"""The `websockets` library's own broadcast, bare.

python -m benchmarks.relay_peers.websockets_relay REDIS_PORT FIRST_JOB JOBS
"""

import asyncio
import sys
from collections import defaultdict

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

from benchmarks.relay_peers.thin_reader import ThinReader, subscribe

sockets: defaultdict[int, set[ServerConnection]] = defaultdict(set)


async def follow(socket: ServerConnection) -> None:
    assert socket.request is not None
    of_job = sockets[int(socket.request.path.split("/")[4])]
    of_job.add(socket)
    try:
        await socket.wait_closed()
    finally:
        of_job.discard(socket)


def forward(job_id: int, data: bytes) -> None:
    broadcast(sockets[job_id], data.decode())


async def main() -> None:
    port, first_job, jobs = map(int, sys.argv[1:4])
    await subscribe(port, first_job, jobs, ThinReader(forward))
    async with serve(follow, "127.0.0.1", 0, compression=None, backlog=2048) as server:
        print("ready", next(iter(server.sockets)).getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main())
