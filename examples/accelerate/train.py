"""Handwritten digits with Accelerate: the loop is your own, so it reports itself. Resumes from its checkpoint.

By hand: python train.py. As a job: epochcast submit train.py --epochs 5 --watch
On several GPUs: epochcast submit train.py --gpus 4 --epochs 5; the variables that Accelerate reads are set then.
"""

import argparse

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import epochcast

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.01)
args = parser.parse_args()

accelerator = Accelerator()
run = epochcast.init(total_epochs=5)

pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)  # (1797, 64), (1797,)
training = DataLoader(TensorDataset(x[:1500], y[:1500]), batch_size=64, shuffle=True)
validation = DataLoader(TensorDataset(x[1500:], y[1500:]), batch_size=256)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
model, optimizer, training, validation = accelerator.prepare(model, optimizer, training, validation)

run.state(model=model, optimizer=optimizer)
run.resume()

for epoch in run.epochs():
    model.train()
    losses = []
    for pixels, digits in run.batches(training):
        loss = nn.functional.cross_entropy(model(pixels), digits)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
    if run.cut_short:
        break
    model.eval()
    right = []
    with torch.no_grad():
        for pixels, digits in validation:
            # From all processes, without the rows that fill up the last batch.
            guessed, true = accelerator.gather_for_metrics((model(pixels).argmax(dim=1), digits))
            right.append(guessed == true)
    train_loss = accelerator.reduce(torch.stack(losses).mean(), "mean")
    run.report(epoch=epoch, train_loss=train_loss, val_accuracy=torch.cat(right).float().mean())
    run.checkpoint()

if run.finished:
    run.save_model(accelerator.unwrap_model(model))
