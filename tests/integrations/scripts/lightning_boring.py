"""A LightningModule and a Trainer, as their documentation shows them."""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self.layer(batch[0]), batch[1]))

    def on_train_epoch_end(self):
        self.log("weight", self.layer.weight.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


L.seed_everything(7)
x = torch.linspace(-1, 1, 64)[:, None]
data = DataLoader(TensorDataset(x, 2 * x), batch_size=16)
trainer = L.Trainer(max_epochs=3, accelerator="cpu", enable_progress_bar=False, log_every_n_steps=1)
trainer.fit(Linear(), data, data)
print("drawn", torch.rand(1).item())
