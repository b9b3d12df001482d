"""A small network on handwritten digits. With --alone it is what it would be without epochcast: it prints its epochs
and saves its checkpoints itself. At the end it prints when it did what."""

import time

first_line = time.monotonic()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402

import torch  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from torch import nn  # noqa: E402

import epochcast  # noqa: E402

imported = time.monotonic()
parser = argparse.ArgumentParser()
parser.add_argument("--network", choices=("mlp", "cnn"), required=True)
parser.add_argument("--epochs", type=int, required=True)
parser.add_argument("--checkpoints", action="store_true")
parser.add_argument("--alone", action="store_true")
args = parser.parse_args()

pixels, digits = load_digits(return_X_y=True)
x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16  # (1797, 1, 8, 8), 0 to 1
y = torch.tensor(digits)
torch.manual_seed(0)
if args.network == "mlp":
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
else:
    model = nn.Sequential(
        nn.Conv2d(1, 96, 3, padding=1),  # (B, 96, 8, 8)
        nn.ReLU(),
        nn.Conv2d(96, 192, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (B, 192, 4, 4)
        nn.Flatten(),
        nn.Linear(192 * 16, 10),
    )
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)


def train_epoch():
    losses = []
    for rows in torch.randperm(len(x)).split(64):
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean()


if args.alone:
    loop_began = time.monotonic()
    for epoch in range(1, args.epochs + 1):
        print(f"epoch {epoch}/{args.epochs} train_loss={train_epoch():.6g}", flush=True)
        if args.checkpoints:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save(state, "checkpoint.partial")
            os.replace("checkpoint.partial", "checkpoint.pt")
else:
    run = epochcast.init(total_epochs=args.epochs)
    run.state(model=model, optimizer=optimizer)
    loop_began = time.monotonic()
    for epoch in run.epochs():
        run.report(epoch=epoch, train_loss=train_epoch())
        if args.checkpoints:
            run.checkpoint()

last_line = time.monotonic()
times = {"first_line": first_line, "imported": imported, "loop_began": loop_began, "last_line": last_line}
print(json.dumps({**times, "threads": torch.get_num_threads(), "waits": os.environ.get("OMP_WAIT_POLICY")}))
