"""A small network on handwritten digits: a script of your own, as it would be without epochcast but for eight lines.

By hand: python train.py --lr 0.05. As a job: epochcast submit train.py --lr 0.05 --epochs 10 --watch
"""

import argparse

import torch
from network import Network
from sklearn.datasets import load_digits

import epochcast

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--batch-size", type=int, default=64)
args = parser.parse_args()

run = epochcast.init(total_epochs=10)
device = "cuda" if torch.cuda.is_available() else "cpu"

pixels, digits = load_digits(return_X_y=True)
x = torch.tensor(pixels, dtype=torch.float32, device=device) / 16  # (1797, 64), 0 to 1
y = torch.tensor(digits, device=device)
train_x, train_y, val_x, val_y = x[:1500], y[:1500], x[1500:], y[1500:]

model = Network().to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)

run.state(model=model, optimizer=optimizer)
run.resume()

for epoch in run.epochs():
    order = torch.randperm(len(train_x), device=device)
    losses = []
    for rows in run.batches(order.split(args.batch_size)):
        loss = torch.nn.functional.cross_entropy(model(train_x[rows]), train_y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    if run.cut_short:
        break
    with torch.no_grad():
        right = model(val_x).argmax(dim=1) == val_y
    run.report(epoch=epoch, train_loss=torch.stack(losses).mean(), val_accuracy=right.float().mean())
    run.checkpoint()

if run.finished:
    run.save_model(model)
