"""Trains a small image classifier, CNN or MLP, on handwritten digits, Fashion-MNIST or your own .npz images.

An ordinary training script: `python image_classifier.py` runs it on a laptop with the parameters below, and
`torchrun --nproc-per-node 2 image_classifier.py` in two processes (ranks) that train one model together. Inside
a job epochcast gives the parameters, keeps the checkpoints and shows the reports.
"""

import gzip
import math
import os
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
    "dataset": "digits",
    "data_dir": None,
    "model": "cnn",
    "width": 32,
    "lr": 0.003,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "warmup": 0.05,
    "batch_size": 64,
    "micro_batch_size": None,
    "accumulation_steps": None,
    "dropout": 0.1,
    "shift": None,
    "flip": None,
    "val_fraction": 0.2,
    "compile": False,
}
AUGMENTATION = {"digits": (0, False), "fashion-mnist": (1, True), "npz": (0, False)}  # shift and flip, if not given
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts its files
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class DataError(ValueError):
    """Raised when the data can't be trained on, or not by so many ranks; the message names the way out."""


def main() -> None:
    run = epochcast.init(PARAMS, total_epochs=20)
    p = run.params
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products need on a GPU
    torch.use_deterministic_algorithms(True)
    # New memory needn't be filled for that: nothing here reads what it hasn't written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device, rank, ranks = join_ranks()
    on_gpu = device.type == "cuda"
    share_size = rows_at_once(p, ranks)

    # All images stay on the device, on each rank's, in the type they came in; the model scales them itself.
    (train_x, train_y), (val_x, val_y), classes = load_data(p, run.seed)
    x, y = to_device(train_x, device), torch.from_numpy(train_y).to(device)  # (N, C, H, W), (N,)
    val_images, val_labels = to_device(val_x, device), torch.from_numpy(val_y).to(device)
    shift, flip = augmentation(p, x.shape[2:])
    framed = in_frames(x, shift)  # (N, C, H + 2 * shift, W + 2 * shift)
    x = framed[:, :, shift : shift + x.shape[2], shift : shift + x.shape[3]]  # a view: they are there once
    if rank == 0:
        run.log(f"{p['dataset']}: {len(x):,} training and {len(val_images):,} validation images of "
                f"{list(x.shape[1:])} in {len(classes)} classes, {ranks} rank{'s' * (ranks > 1)} on "
                f"{torch.cuda.get_device_name() if on_gpu else 'CPU'}")  # fmt: skip

    model = Classifier(p, x, len(classes)).to(device)
    if on_gpu:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward, unsynced = over_ranks(model, x[:1])
    if on_gpu and p["compile"]:
        forward = torch.compile(forward)  # type: ignore[assignment]
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
        moves = draw_moves(random, len(x), shift, flip).to(device)  # (N, 3)
        for rows in run.batches(torch.split(order, p["batch_size"])):  # (batch_size,), of all ranks
            optimizer.zero_grad()
            own, counts = share_of(rows, rank, ranks)
            parts = torch.split(own, share_size)  # their gradients add up to the mean over all rows
            for part in parts:
                weight = counts * len(part)
                images = moved(framed, shift, part, moves[part]) if shift or flip else x[part]  # (B, C, H, W)
                with nullcontext() if part is parts[-1] else unsynced():
                    with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                        loss = F.cross_entropy(forward(images), y[part])
                    (loss * (weight / len(rows))).backward()  # type: ignore[no-untyped-call]
                loss_sum += loss.detach() * weight  # no .item(): it would wait for the device at every step
            optimizer.step()
            scheduler.step()

        if run.cut_short:  # the loss of half an epoch is nobody's
            break
        average_norms(model, ranks)
        sums = summed(loss_sum, *evaluate(model, val_images[rank::ranks], val_labels[rank::ranks]))
        train_loss, val_loss, val_accuracy = sums[0] / ranks / len(x), sums[1] / len(val_y), sums[2] / len(val_y)
        metrics.update(train_loss=train_loss, val_loss=val_loss, val_accuracy=val_accuracy)
        if rank == 0:
            run.report(epoch=epoch, **metrics, lr=scheduler.get_last_lr()[0])
            run.log(f"Epoch {epoch}/{run.total_epochs} - Loss: {train_loss:.4f}")
        run.checkpoint()  # by rank 0: state and metrics are the same on all

    if run.finished:  # a stopped job keeps its checkpoint, not a half-trained model
        shape = list(x.shape[1:])
        run.save_model(model, metrics, config={"model": p["model"], "classes": classes, "image_shape": shape})
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
    """Images (B, C, H, W) of any numeric type to scores (B, classes). Knows the training images' mean and spread."""

    def __init__(self, p: dict[str, Any], x: Tensor, classes: int) -> None:
        super().__init__()
        channels, height, width = x.shape[1:]
        sample = x[:10_000].float()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", sample.mean(dim=(0, 2, 3), keepdim=True))  # (1, C, 1, 1)
        self.register_buffer("std", sample.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6))
        w = p["width"]
        if p["model"] == "mlp":
            pixels = channels * height * width
            self.body = nn.Sequential(
                nn.Flatten(), nn.Linear(pixels, 8 * w), nn.GELU(), nn.Linear(8 * w, 8 * w), nn.GELU()
            )
            features = 8 * w
        else:
            self.body = nn.Sequential(
                *conv(channels, w), *conv(w, w), nn.MaxPool2d(2, ceil_mode=True),  # (B, w, H/2, W/2)
                *conv(w, 2 * w), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(),  # (B, 2w * H/4 * W/4)
            )  # fmt: skip
            features = 2 * w * math.ceil(math.ceil(height / 2) / 2) * math.ceil(math.ceil(width / 2) / 2)
        self.head = nn.Sequential(nn.Dropout(p["dropout"]), nn.Linear(features, classes))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body((x.float() - self.mean) / self.std))
        return scores


def conv(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]


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


def average_norms(model: nn.Module, ranks: int) -> None:
    """The running statistics of batch norm, of which each rank has seen its own rows.

    Batches are normed by each rank for itself, as Goyal et al. 2017 do: `SyncBatchNorm` exists on GPUs only, so that
    a job would train in another way there, and makes two all-reduces a layer and micro-batch. Training doesn't look at
    the running statistics, so once an epoch is often enough.
    """
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and ranks > 1:
            for statistic in (norm.running_mean, norm.running_var):
                assert statistic is not None
                distributed.all_reduce(statistic)
                statistic /= ranks


def share_of(rows: Tensor, rank: int, ranks: int) -> tuple[Tensor, int]:
    """This rank's part of a step's rows, and what each counts: `ranks`, because DDP divides by that.

    A rank that gets none, in an epoch's last step, passes another's row, which counts nothing: none may stay away.
    """
    own = rows[rank::ranks]
    return (own, ranks) if len(own) else (rows[:1], 0)


def augmentation(p: dict[str, Any], size: tuple[int, ...]) -> tuple[int, bool]:
    """By how many pixels images are moved and whether they are mirrored. Raises DataError for moves out of sight."""
    shift, flip = AUGMENTATION[p["dataset"]]
    shift, flip = shift if p["shift"] is None else p["shift"], flip if p["flip"] is None else p["flip"]
    if shift >= min(size):
        raise DataError(f"shift {shift} moves images of {size[0]}x{size[1]} pixels out of sight; make it smaller")
    return shift, flip


def in_frames(images: Tensor, shift: int) -> Tensor:
    """Black around each, channels still innermost in memory."""
    return F.pad(images.permute(0, 2, 3, 1), [0, 0, *[shift] * 4]).permute(0, 3, 1, 2)


def draw_moves(random: np.random.Generator, count: int, shift: int, flip: bool) -> Tensor:
    """(count, 3): where in its frame each image's corner comes to lie, row and column, and whether it is mirrored."""
    corners = random.integers(0, 2 * shift, (count, 2), endpoint=True)
    mirrored = random.integers(0, int(flip), (count, 1), endpoint=True)
    return torch.from_numpy(np.concatenate([corners, mirrored], axis=1))


def moved(framed: Tensor, shift: int, rows: Tensor, moves: Tensor) -> Tensor:
    """Those images, (B, C, H, W), moved by up to `shift` pixels and mirrored: one gather on the device."""
    height, width = framed.shape[2] - 2 * shift, framed.shape[3] - 2 * shift
    down = moves[:, 0, None] + torch.arange(height, device=rows.device)  # (B, H)
    across = moves[:, 1, None] + torch.arange(width, device=rows.device)  # (B, W)
    across = torch.where(moves[:, 2, None] == 1, across.flip(1), across)
    images = framed[rows[:, None, None], :, down[:, :, None], across[:, None, :]]  # (B, H, W, C)
    return images.permute(0, 3, 1, 2)


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss and number of right answers over all of `x`, in full precision."""
    model.eval()
    loss_sum, correct = torch.zeros((), device=x.device), torch.zeros((), device=x.device)
    for images, labels in zip(torch.split(x, 1024), torch.split(y, 1024), strict=True):
        scores = model(images)
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


def to_device(images: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """(N, H, W) or (N, H, W, C) to (N, C, H, W) on the device, in memory as they came: channels innermost.

    A single channel too has its stride there (numpy gives it 0), by which torch chooses the faster convolutions: on a
    CPU the `cnn` then trains 1.35 times as fast.
    """
    on_device = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return (on_device.unsqueeze(3) if images.ndim == 3 else on_device).permute(0, 3, 1, 2)


# ---- Data: ((images, labels) to train on, the same for validation, names of the classes) ----------------------------


def load_data(p: dict[str, Any], seed: int) -> tuple[Arrays, Arrays, list[Any]]:
    given: Arrays | None
    if p["dataset"] == "fashion-mnist":
        folder = Path(p["data_dir"] or FASHION_MNIST)
        train, given = read_idx(folder, "train"), read_idx(folder, "t10k")
    elif p["dataset"] == "npz":
        train, given = read_npz_folder(Path(p["data_dir"]))
    else:
        from sklearn.datasets import load_digits

        digits = load_digits()
        train, given = (digits.images.astype(np.float32), digits.target), None
    train, val = (train, given) if given is not None else split(train, p["val_fraction"], seed)

    names, train_y = np.unique(train[1], return_inverse=True)
    if unknown := sorted(set(np.unique(val[1]).tolist()) - set(names.tolist())):
        raise DataError(
            f"validation holds the labels {unknown[:5]}, which no training image has; add some, or split anew"
        )
    if len(names) < 2:
        raise DataError(f"all training images have the label {names[0]}; a classifier needs at least two")
    return (train[0], train_y), (val[0], np.searchsorted(names, val[1])), names.tolist()


def split(data: Arrays, val_fraction: float, seed: int) -> tuple[Arrays, Arrays]:
    images, labels = data
    order = np.random.default_rng(seed).permutation(len(images))
    val_count = round(val_fraction * len(images))
    if not 0 < val_count < len(images):
        raise DataError(
            f"{len(images)} images can't be split with val_fraction {val_fraction}: one side would be empty"
        )
    val, train = order[:val_count], order[val_count:]
    return (images[train], labels[train]), (images[val], labels[val])


def read_idx(folder: Path, part: str) -> Arrays:
    """Fashion-MNIST's own format: a header of 16 (images) or 8 (labels) bytes, then one byte a pixel or label."""
    contents = []
    for name, header in ((f"{part}-images-idx3-ubyte", 16), (f"{part}-labels-idx1-ubyte", 8)):
        packed, plain = folder / f"{name}.gz", folder / name
        if packed.is_file():
            raw = gzip.decompress(packed.read_bytes())
        elif plain.is_file():
            raw = plain.read_bytes()
        else:
            raise DataError(
                f"{packed} is missing; install Debian's dataset-fashion-mnist or name the folder in data_dir"
            )
        contents.append(np.frombuffer(raw, np.uint8, offset=header))
    images, labels = contents
    if len(images) != len(labels) * 28 * 28:
        raise DataError(f"{folder} is not whole: {len(labels)} labels, but {len(images)} pixels; fetch the files again")
    return images.reshape(-1, 28, 28).copy(), labels


def read_npz_folder(folder: Path) -> tuple[Arrays, Arrays | None]:
    """train.npz and val.npz, or all *.npz together and no split yet."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise DataError(f"{folder} holds no .npz file (on this host); data_dir must name a folder that does")
    by_name = {file.name: file for file in files}
    if "train.npz" in by_name and "val.npz" in by_name:
        train, val = read_npz(by_name["train.npz"]), read_npz(by_name["val.npz"])
        if train[0].shape[1:] != val[0].shape[1:]:
            raise DataError(
                f"images in train.npz are {train[0].shape[1:]}, in val.npz {val[0].shape[1:]}; make them one"
            )
        return train, val
    parts = [read_npz(file) for file in files]
    if len(shapes := {images.shape[1:] for images, _ in parts}) > 1:
        raise DataError(f"the files in {folder} hold images of different shapes {sorted(shapes)}; make them one")
    return (np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])), None


def read_npz(file: Path) -> Arrays:
    try:
        with np.load(file, allow_pickle=False) as content:
            images, labels = content["images"], content["labels"]
    except KeyError as error:
        raise DataError(f"{file} has no array named {error}; it needs images and labels") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} can't be read: {error}; write it with numpy.savez(images=…, labels=…)") from error
    if images.ndim not in (3, 4) or images.dtype.kind not in "uifb":
        raise DataError(f"images in {file} are {images.dtype} of shape {images.shape}; needed: numbers (N, H, W[, C])")
    if labels.shape != images.shape[:1]:
        raise DataError(f"labels in {file} have shape {labels.shape}; needed: one for each of the {len(images)} images")
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise DataError(f"images in {file} hold NaN or infinity; clean them first")
    return images, labels


if __name__ == "__main__":
    main()
