"""How fast the recipes train: each one's own loop against a plain DataLoader loop over the very same model.

Epochs of both alternate in one process, so that a noisy minute of the machine hits both. On a CPU: one thread, its
own CPU seconds, fp32 here and there; on a GPU the recipe computes as it does there (bf16, fused, compiled, data on the
device), the plain loop in fp32. A ratio is the recipe's rows (language model: bytes) a second over the plain loop's.
Last comes one line of JSON.
"""

import importlib
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(0, str(CHECKOUT))

import epochcast  # noqa: E402
from epochcast.run import Run  # noqa: E402
from shared import recipes  # noqa: E402

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
PICTURES = 16_384 if ON_GPU else 1_024

# Plays the supervisor: takes what the recipe says. A process of its own, as the supervisor is.
DRAIN = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    connection, _ = listener.accept()
    while connection.recv(65536):
        pass
"""

PlainEpoch = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """`plain(recipe's module, hyperparameters)` makes the plain loop over one epoch; `@` stands for the pictures."""

    name: str
    recipe: str
    hyperparameters: dict[str, Any]
    plain: Callable[[ModuleType, dict[str, Any]], PlainEpoch]
    rounds: int


def cases() -> list[Case]:
    pictures: dict[str, Any] = {"dataset": "npz", "data_dir": "@", "shift": 0, "compile": ON_GPU}
    text: dict[str, Any] = {"steps_per_epoch": 12, "sample_bytes": 0}
    if ON_GPU:
        pictures |= {"width": 64, "batch_size": 512}
        text |= {"layers": 6, "width": 384, "heads": 6, "context": 256, "micro_batch_size": 64, "compile": True}
        text |= {"steps_per_epoch": 40}
    return [
        Case("image_cnn", "image-classifier", pictures, plain_images, 5),
        # The plain loop augments nothing: what it costs to move and mirror.
        Case("image_cnn_augmented", "image-classifier", {**pictures, "shift": 2, "flip": True}, plain_images, 5),
        Case("image_mlp", "image-classifier", {**pictures, "model": "mlp"}, plain_images, 15),
        Case("tabular", "tabular-classifier", {}, plain_table, 60),
        Case("language_model", "language-model", text, plain_text, 7),
    ]


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "benchmark": "recipes",
        "device": torch.cuda.get_device_name() if ON_GPU else "CPU, one thread",
    }
    with tempfile.TemporaryDirectory() as name, listening(Path(name)):
        for case in cases():
            recipe_per_s, plain_per_s = measure(case, Path(name))
            result[f"{case.name}_per_s"] = round(recipe_per_s)
            result[f"{case.name}_plain_per_s"] = round(plain_per_s)
            result[f"{case.name}_ratio"] = round(recipe_per_s / plain_per_s, 3)
            print(f"{case.name:20} {recipe_per_s:12,.0f} /s   plain {plain_per_s:12,.0f} /s   "
                  f"ratio {recipe_per_s / plain_per_s:.2f}", flush=True)  # fmt: skip
    print(json.dumps(result))


@contextmanager
def listening(folder: Path) -> Iterator[None]:
    """The attempt's socket in `folder`; what arrives is thrown away."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen()
        number = listener.fileno()
        drain = subprocess.Popen([sys.executable, "-c", DRAIN, str(number)], pass_fds=(number,))
        try:
            yield
        finally:
            drain.kill()
            drain.wait()


@dataclass
class Clock:
    """Stands around `run.epochs()` and `run.batches()` of a recipe: a plain epoch before each of its own."""

    plain: PlainEpoch
    began: float = 0.0
    rows: int = 0
    recipe_s: list[float] = field(default_factory=list)
    plain_s: list[float] = field(default_factory=list)

    def epochs(self, epochs: Iterator[int]) -> Iterator[int]:
        for epoch in epochs:
            torch.use_deterministic_algorithms(False)  # the recipe pays for it, the plain loop doesn't
            began = now()
            self.plain()
            self.plain_s.append(now() - began)
            torch.use_deterministic_algorithms(True)
            self.began = now()
            yield epoch

    def batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        yield from batches
        self.recipe_s.append(now() - self.began)


def measure(case: Case, folder: Path) -> tuple[float, float]:
    """Rows a second of the recipe and of the plain loop, medians of all rounds but the first."""
    if not (folder / "train.npz").exists():
        write_pictures(folder)
    chosen = {name: str(folder) if value == "@" else value for name, value in case.hyperparameters.items()}
    params = recipes.validate(case.recipe, chosen)
    told = {"job_id": 1, "attempt": 1, "name": "bench", "recipe": case.recipe, "params": params, "seed": 0}
    told |= {"total_epochs": case.rounds + 1, "threads": 1, "checkpoints": [], "out_dir": str(folder)}
    (folder / "job.json").write_text(json.dumps(told))
    os.environ |= {"EPOCHCAST_SOCKET": f"{folder}/socket", "EPOCHCAST_JOB": f"{folder}/job.json"}

    recipe = importlib.import_module(f"worker.recipes.{case.recipe.replace('-', '_')}")
    clock = Clock(case.plain(recipe, params))
    epochs, batches = Run.epochs, Run.batches
    Run.epochs = lambda run: clock.epochs(epochs(run))  # type: ignore[method-assign, assignment]
    Run.batches = lambda run, loader: clock.batches(batches(run, loader))  # type: ignore[method-assign, assignment]
    try:
        recipe.main()
    finally:
        Run.epochs, Run.batches = epochs, batches  # type: ignore[method-assign]
        epochcast.init().close()
        for file in folder.glob("*.pt"):
            file.unlink()
    rows = rows_of_an_epoch(recipe, params)
    return rows / statistics.median(clock.recipe_s[1:]), rows / statistics.median(clock.plain_s[1:])


def now() -> float:
    """Seconds. On a CPU those that this one busy thread was given: what else the machine does is not measured then."""
    if not ON_GPU:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def write_pictures(folder: Path) -> None:
    random = np.random.default_rng(0)
    for name, count in (("train", PICTURES), ("val", 64)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=np.arange(count) % 10)


def rows_of_an_epoch(recipe: ModuleType, p: dict[str, Any]) -> int:
    if "context" in p:
        return int(p["steps_per_epoch"] * p["micro_batch_size"] * p["accumulation_steps"] * p["context"])
    if "target" in p:
        return len(recipe.split(recipe.load_table(p), p["val_fraction"], 0)[0])
    return PICTURES


# ---- The plain loops, as a tutorial writes them ---------------------------------------------------------------------


def plain_images(recipe: ModuleType, p: dict[str, Any]) -> PlainEpoch:
    (images, labels), _, classes = recipe.load_data(p, 0)
    x = torch.from_numpy(images)[:, None]  # (N, 1, H, W)
    model = recipe.Classifier(p, x, len(classes)).to(DEVICE)
    return plain_classifier(model, TensorDataset(x, torch.from_numpy(labels)), p)


def plain_table(recipe: ModuleType, p: dict[str, Any]) -> PlainEpoch:
    table = recipe.load_table(p)
    rows, _ = recipe.split(table, p["val_fraction"], 0)
    x = torch.from_numpy(table.x).float()[rows]
    model = recipe.Classifier(p, x, len(table.classes)).to(DEVICE)
    return plain_classifier(model, TensorDataset(x, torch.from_numpy(table.y)[rows]), p)


def plain_classifier(model: nn.Module, dataset: TensorDataset, p: dict[str, Any]) -> PlainEpoch:
    loader = DataLoader(dataset, batch_size=p["batch_size"], shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=p["lr"], weight_decay=p["weight_decay"])

    def epoch() -> None:
        model.train()
        loss_sum = 0.0
        for x, y in loader:
            x, y = x.to(DEVICE), y.to(DEVICE)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.item() * len(x)
        finite(loss_sum)

    return epoch


class Windows(Dataset[torch.Tensor]):
    """Pieces of a text, at random places."""

    def __init__(self, text: torch.Tensor, context: int, count: int) -> None:
        self.text, self.context, self.count = text, context, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> torch.Tensor:
        start = int(torch.randint(len(self.text) - self.context, ()))
        return self.text[start : start + self.context + 1].long()


def plain_text(recipe: ModuleType, p: dict[str, Any]) -> PlainEpoch:
    text, _ = recipe.load_text(p, 0)
    windows = Windows(torch.from_numpy(text), p["context"], p["steps_per_epoch"] * p["micro_batch_size"])
    loader = DataLoader(windows, batch_size=p["micro_batch_size"])
    model = recipe.GPT(p).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=p["lr"], weight_decay=p["weight_decay"], betas=(0.9, 0.95))

    def epoch() -> None:
        model.train()
        loss_sum = 0.0
        for window in loader:
            window = window.to(DEVICE)
            optimizer.zero_grad()
            scores = model(window[:, :-1])
            loss = F.cross_entropy(scores.flatten(0, 1), window[:, 1:].flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), p["clip_norm"])
            optimizer.step()
            loss_sum += loss.item()
        finite(loss_sum)

    return epoch


def finite(loss_sum: float) -> None:
    """A loop that has stopped learning would be measured in vain."""
    if not math.isfinite(loss_sum):
        raise SystemExit(f"the plain loop's loss is {loss_sum}")


if __name__ == "__main__":
    main()
