"""A tiny GPT-2, made from a config, learns to count; trained by transformers.Trainer, with an evaluation each epoch.

By hand: python train.py. As a job: epochcast submit train.py --epochs 5 --watch
Nothing is downloaded: put `AutoModelForCausalLM.from_pretrained` in its place where the host may.
"""

import argparse

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import epochcast
from epochcast.integrations.transformers import EpochcastTrainerCallback

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.01)
args = parser.parse_args()

NUMBERS, LENGTH = 64, 16


class Counting(Dataset):
    """Number by number, from each number on: 5 6 7 8 …"""

    def __init__(self, starts: range) -> None:
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (self.starts[index] + torch.arange(LENGTH)) % NUMBERS  # (LENGTH,)
        return {"input_ids": ids, "labels": ids}


run = epochcast.init(total_epochs=5)
model = GPT2LMHeadModel(GPT2Config(vocab_size=NUMBERS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2))
arguments = TrainingArguments(
    output_dir="out",
    num_train_epochs=run.total_epochs,
    per_device_train_batch_size=8,
    learning_rate=args.lr,
    eval_strategy="epoch",
    logging_strategy="epoch",
    save_strategy="no",
    report_to="none",
    seed=run.seed,
    disable_tqdm=True,
)
trainer = Trainer(
    model=model,
    args=arguments,
    train_dataset=Counting(range(0, NUMBERS, 2)),
    eval_dataset=Counting(range(1, NUMBERS, 2)),
    callbacks=[EpochcastTrainerCallback()],
)
trainer.train()
run.save_model(model)
