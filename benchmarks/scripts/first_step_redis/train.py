"""The same work as `first_step/train.py`, reported as one would without a platform: appended to a Redis stream and
published, by the script itself. Arguments: the server's URL, a stream, a channel."""

import json
import sys
import time

began = time.monotonic()

import redis  # noqa: E402
import torch  # noqa: E402

url, stream, channel = sys.argv[1:]
client = redis.Redis.from_url(url)
model = torch.nn.Linear(64, 10)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
loss = torch.nn.functional.cross_entropy(model(torch.randn(32, 64)), torch.randint(10, (32,)))
loss.backward()
optimizer.step()
client.xadd(stream, {"epoch": 1, "train_loss": loss.item()})
reported = time.monotonic()
client.publish(channel, json.dumps({"epoch": 1, "train_loss": loss.item(), "began": began, "reported": reported}))
