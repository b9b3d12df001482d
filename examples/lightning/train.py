"""A Lightning module on handwritten digits. Its epochs and metrics are seen live; its weights go into the registry.

By hand: python train.py. As a job: epochcast submit train.py --epochs 5 --watch
"""

import argparse

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import epochcast
from epochcast.integrations.lightning import EpochcastCallback

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.01)
args = parser.parse_args()


class Digits(L.LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        pixels, digits = batch  # (B, 64), (B,)
        loss = nn.functional.cross_entropy(self.network(pixels), digits)
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch, batch_idx):
        pixels, digits = batch
        scores = self.network(pixels)  # (B, 10)
        self.log("val_loss", nn.functional.cross_entropy(scores, digits))
        self.log("val_accuracy", (scores.argmax(dim=1) == digits).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


run = epochcast.init(total_epochs=5)
L.seed_everything(run.seed)

pixels, digits = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits))
training, validation = random_split(data, [1500, len(data) - 1500])

trainer = L.Trainer(
    max_epochs=run.total_epochs,
    callbacks=[EpochcastCallback()],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
module = Digits(args.lr)
trainer.fit(module, DataLoader(training, batch_size=64, shuffle=True), DataLoader(validation, batch_size=256))
run.save_model(module, metrics={name: value.item() for name, value in trainer.callback_metrics.items()})
