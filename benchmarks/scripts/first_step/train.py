"""The smallest script that needs torch: one optimizer step and one report. Then it prints when it did what."""

import json
import time

began = time.monotonic()

import torch  # noqa: E402

import epochcast  # noqa: E402

run = epochcast.init(total_epochs=1)
model = torch.nn.Linear(64, 10)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for epoch in run.epochs():
    loss = torch.nn.functional.cross_entropy(model(torch.randn(32, 64)), torch.randint(10, (32,)))
    loss.backward()
    optimizer.step()
    stepped = time.monotonic()
    run.report(epoch=epoch, train_loss=loss)
    reported = time.monotonic()
print(json.dumps({"began": began, "stepped": stepped, "reported": reported}))
