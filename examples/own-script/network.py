"""The network of train.py, in a file of its own: what lies in the script's folder goes with it."""

import torch


class Network(torch.nn.Sequential):
    """Pixels (B, 64) to the scores of ten digits (B, 10)."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
