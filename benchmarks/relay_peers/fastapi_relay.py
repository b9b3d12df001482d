"""FastAPI in two ways: `queues`, one subscription for all with a queue and a task per socket; `usual`, as tutorials
have it, a Redis subscription per socket.

    python -m benchmarks.relay_peers.fastapi_relay REDIS_PORT FIRST_JOB JOBS queues|usual
"""

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import redis.asyncio
import uvicorn
from fastapi import FastAPI, WebSocket
from starlette.websockets import WebSocketDisconnect

from api.server import open_listener
from benchmarks.relay_peers.thin_reader import channel, job_of

PORT, FIRST_JOB, JOBS = map(int, sys.argv[1:4])
client = redis.asyncio.Redis(port=PORT, password=os.environ["REDIS_PASSWORD"], max_connections=10_000)
queues: defaultdict[int, set[asyncio.Queue[str]]] = defaultdict(set)


async def fan_out() -> None:
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(*(channel(FIRST_JOB + index) for index in range(JOBS)))
        async for message in pubsub.listen():
            if message["type"] == "message":
                text = message["data"].decode()
                for queue in queues[job_of(message["channel"])]:
                    queue.put_nowait(text)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    if sys.argv[4] == "queues":
        task = asyncio.create_task(fan_out())
        yield
        task.cancel()
    else:
        yield


app = FastAPI(lifespan=lifespan)


async def from_queue(websocket: WebSocket, job_id: int) -> None:
    queue: asyncio.Queue[str] = asyncio.Queue()
    queues[job_id].add(queue)
    try:
        await websocket.accept()
        while True:
            await websocket.send_text(await queue.get())
    finally:
        queues[job_id].discard(queue)


async def from_subscription(websocket: WebSocket, job_id: int) -> None:
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(channel(job_id))
        await websocket.accept()
        async for message in pubsub.listen():
            if message["type"] == "message":
                await websocket.send_text(message["data"].decode())


@app.websocket("/api/v1/training-jobs/{job_id}/ws")
async def follow(websocket: WebSocket, job_id: int) -> None:
    with suppress(WebSocketDisconnect):
        await (from_queue if sys.argv[4] == "queues" else from_subscription)(websocket, job_id)


if __name__ == "__main__":
    listener = open_listener("127.0.0.1", 0)
    print("ready", listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, loop="uvloop", log_config=None, ws_per_message_deflate=False, backlog=2048)
    uvicorn.Server(config).run([listener])
