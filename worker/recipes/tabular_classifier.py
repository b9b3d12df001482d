"""Trains a small neural network on a table: breast cancer, wine, or any CSV file with a column to predict.

An ordinary training script: `python tabular_classifier.py` runs it on a laptop with the parameters below, and
`torchrun --nproc-per-node 2 tabular_classifier.py` in two processes (ranks) that train one model together. Inside
a job epochcast gives the parameters, keeps the checkpoints and shows the reports.
"""

import csv
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import epochcast

PARAMS = {
    "record_memory": None,
    "dataset": "breast-cancer",
    "path": None,
    "target": None,
    "hidden": 64,
    "layers": 2,
    "lr": 0.003,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "warmup": 0.05,
    "batch_size": 32,
    "micro_batch_size": None,
    "accumulation_steps": None,
    "dropout": 0.1,
    "val_fraction": 0.2,
}
MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
MOST_CATEGORIES = 1000


class DataError(ValueError):
    """Raised when the table can't be trained on, or not by so many ranks; the message names the way out."""


@dataclass(frozen=True)
class Table:
    """`x`: (N, columns), missing numbers NaN, categories as 0/1 columns; `y`: class of each row; names of both."""

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]
    columns: list[str]
    classes: list[str]


def main() -> None:
    run = epochcast.init(PARAMS, total_epochs=50)
    p = run.params
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products need on a GPU
    torch.use_deterministic_algorithms(True)
    # New memory needn't be filled for that: nothing here reads what it hasn't written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device, rank, ranks = join_ranks()
    share_size = rows_at_once(p, ranks)

    # The whole table stays on the device, on each rank's.
    table = load_table(p)
    train_rows, val_rows = split(table, p["val_fraction"], run.seed)
    x, y = torch.from_numpy(table.x).float().to(device), torch.from_numpy(table.y).to(device)  # (N, columns), (N,)
    (x, y), (val_x, val_y) = (x[train_rows], y[train_rows]), (x[val_rows], y[val_rows])
    if rank == 0:
        run.log(f"{p['dataset']}: {len(x):,} training and {len(val_x):,} validation rows of {x.shape[1]} columns "
                f"in {len(table.classes)} classes, {ranks} rank{'s' * (ranks > 1)}")  # fmt: skip

    model = Classifier(p, x, len(table.classes)).to(device)
    forward, unsynced = over_ranks(model, x[:1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=p["lr"], weight_decay=p["weight_decay"], fused=True)
    steps = run.total_epochs * math.ceil(len(x) / p["batch_size"])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps, p))
    metrics: dict[str, Any] = {}
    run.state(model=model, optimizer=optimizer, scheduler=scheduler, metrics=metrics)
    run.resume()

    for epoch in run.epochs():
        model.train()
        loss_sum = torch.zeros((), device=device)
        random = np.random.default_rng([run.seed, epoch])  # on all ranks the same, and on every kind of device
        order = torch.from_numpy(random.permutation(len(x))).to(device)
        for rows in run.batches(torch.split(order, p["batch_size"])):  # (batch_size,), of all ranks
            optimizer.zero_grad()
            own, counts = share_of(rows, rank, ranks)
            parts = torch.split(own, share_size)  # their gradients add up to the mean over all rows
            for part in parts:
                weight = counts * len(part)
                with nullcontext() if part is parts[-1] else unsynced():
                    loss = F.cross_entropy(forward(x[part]), y[part])
                    (loss * (weight / len(rows))).backward()  # type: ignore[no-untyped-call]
                loss_sum += loss.detach() * weight  # no .item(): it would wait for the device at every step
            optimizer.step()
            scheduler.step()

        if run.cut_short:  # the loss of half an epoch is nobody's
            break
        train_sum, val_sum, correct = summed(loss_sum, *evaluate(model, val_x[rank::ranks], val_y[rank::ranks]))
        train_loss = train_sum / ranks / len(x)
        metrics.update(train_loss=train_loss, val_loss=val_sum / len(val_x), val_accuracy=correct / len(val_x))
        if rank == 0:
            run.report(epoch=epoch, **metrics, lr=scheduler.get_last_lr()[0])
            run.log(f"Epoch {epoch}/{run.total_epochs} - Loss: {train_loss:.4f}")
        run.checkpoint()  # by rank 0: state and metrics are the same on all

    if run.finished:  # a stopped job keeps its checkpoint, not a half-trained model
        run.save_model(model, metrics, config={"columns": table.columns, "classes": table.classes})
    if distributed.is_initialized():
        del forward, unsynced  # before the group: freed after it, DDP can wait for ever for gloo's threads
        distributed.destroy_process_group()


def join_ranks() -> tuple[torch.device, int, int]:
    """This process's device, its rank and the number of ranks: 0 of 1, unless torchrun's variables say otherwise.

    Raises DataError where a rank has no GPU of its own.
    """
    rank, ranks, place = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on_gpu = torch.cuda.is_available()
    if on_gpu and place >= torch.cuda.device_count():
        raise DataError(f"{place + 1} ranks or more on {torch.cuda.device_count()} GPUs; take one rank a GPU")
    if on_gpu:
        torch.cuda.set_device(place)
    if ranks > 1:
        distributed.init_process_group("nccl" if on_gpu else "gloo")
    return torch.device("cuda", place) if on_gpu else torch.device("cpu"), rank, max(1, ranks)


def rows_at_once(p: dict[str, Any], ranks: int) -> int:
    """A rank's share of a micro-batch, rounded up. Raises DataError where a rank would have none."""
    if p["batch_size"] < ranks:
        raise DataError(
            f"batch_size {p['batch_size']} is what all {ranks} ranks share in a step, and each needs a row; "
            f"make it {ranks} or more, or take fewer ranks"
        )
    micro_batch_size: int = p["micro_batch_size"] or p["batch_size"] // (p["accumulation_steps"] or 1)
    return math.ceil(micro_batch_size / ranks)


def learning_rate(step: int, steps: int, p: dict[str, Any]) -> float:
    """The factor on the peak: a linear warm-up, then half a cosine down to zero, or constant."""
    warmup: int = round(p["warmup"] * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if p["schedule"] == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


class Classifier(nn.Module):
    """Rows (B, columns) to scores (B, classes). Knows mean and spread of the training rows; a missing value (NaN)
    counts as the mean, and a second input per column says that it was missing."""

    def __init__(self, p: dict[str, Any], x: Tensor, classes: int) -> None:
        super().__init__()
        present = ~x.isnan()
        count = present.sum(0).clamp_min(1)
        mean = x.nan_to_num().sum(0) / count
        spread = (((x - mean).nan_to_num() ** 2).sum(0) / count).sqrt()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)  # (columns,)
        self.register_buffer("std", torch.where(spread > 1e-6, spread, 1.0))
        layers: list[nn.Module] = []
        width = 2 * x.shape[1]
        for _ in range(p["layers"]):
            layers += [nn.Linear(width, p["hidden"]), nn.GELU()]
            width = p["hidden"]
        self.layers = nn.Sequential(*layers, nn.Dropout(p["dropout"]), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        inputs = torch.cat([((x - self.mean) / self.std).nan_to_num(), x.isnan().float()], dim=1)  # (B, 2 * columns)
        scores: Tensor = self.layers(inputs)
        return scores


def over_ranks(model: nn.Module, example: Tensor) -> tuple[nn.Module, Callable[[], AbstractContextManager[None]]]:
    """The model whose backward pass averages gradients over the ranks, and the context in which it doesn't yet."""
    if not distributed.is_initialized():
        return model, nullcontext
    network = DistributedDataParallel(model, broadcast_buffers=False)
    # DDP orders gradients anew after its first backward pass, and with the order goes how the sum of three ranks is
    # rounded. With that pass made here, a resumed attempt rounds like one that was never interrupted.
    network.eval()
    network(example).sum().backward()
    network.zero_grad()
    return network, network.no_sync


def share_of(rows: Tensor, rank: int, ranks: int) -> tuple[Tensor, int]:
    """This rank's part of a step's rows, and what each counts: `ranks`, because DDP divides by that.

    A rank that gets none, in an epoch's last step, passes another's row, which counts nothing: none may stay away.
    """
    own = rows[rank::ranks]
    return (own, ranks) if len(own) else (rows[:1], 0)


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss and number of right answers over all of `x`."""
    model.eval()
    loss_sum, correct = torch.zeros((), device=x.device), torch.zeros((), device=x.device)
    for rows, labels in zip(torch.split(x, 65_536), torch.split(y, 65_536), strict=True):
        scores = model(rows)
        loss_sum += F.cross_entropy(scores, labels, reduction="sum")
        correct += (scores.argmax(1) == labels).sum()
    return loss_sum, correct


def summed(*values: Tensor) -> list[float]:
    """Each over all ranks. The one place where an epoch waits for its device."""
    sums = torch.stack(values)
    if distributed.is_initialized():
        distributed.all_reduce(sums)
    numbers: list[float] = sums.tolist()
    return numbers


# ---- Data -----------------------------------------------------------------------------------------------------------


def load_table(p: dict[str, Any]) -> Table:
    if p["dataset"] == "csv":
        return read_csv(Path(p["path"]), p["target"])
    from sklearn import datasets

    data = datasets.load_wine() if p["dataset"] == "wine" else datasets.load_breast_cancer()
    return Table(data.data, data.target, list(data.feature_names), [str(name) for name in data.target_names])


def split(table: Table, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and to validate on, with the classes in proportion."""
    random = np.random.default_rng(seed)
    train, val = [], []
    for label in range(len(table.classes)):
        rows = random.permutation(np.flatnonzero(table.y == label))
        val_count = min(round(val_fraction * len(rows)), len(rows) - 1)  # every class keeps a row to train on
        val.append(rows[:val_count])
        train.append(rows[val_count:])
    if not sum(map(len, val)):
        raise DataError(f"{len(table.y)} rows leave none for validation with val_fraction {val_fraction}; add rows")
    return torch.from_numpy(np.concatenate(train)), torch.from_numpy(np.concatenate(val))


def read_csv(path: Path, target: str) -> Table:
    header, rows, lines = read_rows(path)
    if target not in header:
        raise DataError(f"{path} has no column {target!r} to predict; its columns are {', '.join(header[:50])}")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    labels = columns.pop(target)
    for line, label in zip(lines, labels, strict=True):
        if is_missing(label):
            raise DataError(
                f"{path}, line {line}: {target}, the column to predict, is empty; fill it or remove the line"
            )
    classes = sorted(set(labels))
    if not 2 <= len(classes) <= min(MOST_CATEGORIES, len(rows) // 2):
        raise DataError(
            f"{path}: column {target} has {len(classes)} different values in {len(rows)} rows; "
            "a column of classes has at least 2, and 2 rows or more for each"
        )
    encoded = [encode(path, name, values, lines) for name, values in columns.items()]
    names = [name for _, block_names in encoded for name in block_names]
    if not names:
        raise DataError(f"{path} has no usable column besides {target}; add columns to predict it from")
    place_of = {label: place for place, label in enumerate(classes)}
    x = np.concatenate([block for block, _ in encoded], axis=1)
    return Table(x, np.array([place_of[label] for label in labels]), names, classes)


def read_rows(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Header, rows and the line in which each row ends."""
    rows, lines = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if len(row) not in (0, len(header)):
                    raise DataError(
                        f"{path}, line {reader.line_num} has {len(row)} fields, the header {len(header)}; "
                        "make them equal, or quote what holds a comma"
                    )
                if row:
                    rows.append([value.strip() for value in row])
                    lines.append(reader.line_num)
    except OSError as error:
        raise DataError(f"{path} can't be read on this host: {error.strerror}; name a CSV file there") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; correct the quoting") from error
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{path} has several columns named {', '.join(twice)}; rename all but one")
    if not rows:
        raise DataError(f"{path} has no rows; it needs a header line and rows below it")
    return header, rows, lines


def encode(path: Path, name: str, values: Sequence[str], lines: list[int]) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Numbers as one column, categories as a 0/1 column each; what differs in most rows (a name, an id) as none."""
    cells = [(line, value) for line, value in zip(lines, values, strict=True) if not is_missing(value)]
    stray = [(line, value) for line, value in cells if not is_number(value)]
    if 0 < len(stray) <= len(cells) * 0.05:
        line, value = stray[0]
        raise DataError(
            f"{path}, line {line}: column {name} is {value!r}, where nearly all rows have a number; "
            "correct it, or leave it empty if it is unknown"
        )
    if cells and not stray:
        return np.array([math.nan if is_missing(value) else float(value) for value in values])[:, None], [name]

    categories = sorted({value for _, value in cells})
    if len(categories) > max(20, len(cells) // 2) or len(categories) < 2:
        return np.empty((len(values), 0)), []
    if len(categories) > MOST_CATEGORIES:
        raise DataError(
            f"{path}: column {name} has {len(categories)} categories, at most {MOST_CATEGORIES} are taken; merge some"
        )
    one_hot = np.array(values)[:, None] == np.array(categories)[None, :]
    return one_hot.astype(np.float64), [f"{name}={category}" for category in categories]


def is_missing(value: str) -> bool:
    return value.lower() in MISSING


def is_number(value: str) -> bool:
    """Infinity is none: no network learns from it."""
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


if __name__ == "__main__":
    main()
