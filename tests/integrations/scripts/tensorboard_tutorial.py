"""Trains as PyTorch tutorials do: batches are logged by a global step, epochs by their number."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

x = torch.linspace(-1, 1, 64)[:, None]
training = DataLoader(TensorDataset(x, 2 * x), batch_size=16, shuffle=True)
model = nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
writer = SummaryWriter("runs/linear")


def train_one_epoch(epoch_index):
    for i, (inputs, labels) in enumerate(training):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), labels)
        loss.backward()
        optimizer.step()
        writer.add_scalar("Loss/batch", loss.item(), epoch_index * len(training) + i)
    return loss.item()


for epoch in range(4):
    train_loss = train_one_epoch(epoch)
    with torch.no_grad():
        val_loss = nn.functional.mse_loss(model(x), 2 * x)
    writer.add_scalar("Loss/train", train_loss, epoch)
    writer.add_scalar("Loss/validation", val_loss, epoch)
writer.close()
