"""Trains a small image classifier, CNN or MLP, on handwritten digits, Fashion-MNIST or your own .npz images.

An ordinary training script: `python image_classifier.py` runs it on a laptop with the parameters below; inside a job
epochcast gives the parameters, keeps the checkpoints and shows the reports.
"""

import gzip
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    "val_fraction": 0.2,
    "compile": False,
}
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts its files
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class DataError(ValueError):
    """Raised when the data can't be trained on; the message names the file and the way out."""


def main() -> None:
    run = epochcast.init(PARAMS, total_epochs=20)
    p = run.params
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products need on a GPU
    torch.use_deterministic_algorithms(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"

    # All images stay on the device, in the type they came in; the model scales them itself.
    (train_x, train_y), (val_x, val_y), classes = load_data(p, run.seed)
    x, y = to_device(train_x, device), torch.from_numpy(train_y).to(device)  # (N, C, H, W), (N,)
    val_images, val_labels = to_device(val_x, device), torch.from_numpy(val_y).to(device)
    run.log(f"{p['dataset']}: {len(x):,} training and {len(val_images):,} validation images of {list(x.shape[1:])} "
            f"in {len(classes)} classes, on {torch.cuda.get_device_name() if on_gpu else 'CPU'}")  # fmt: skip

    model = Classifier(p, x, len(classes)).to(device)
    if on_gpu:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = torch.compile(model) if on_gpu and p["compile"] else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=p["lr"], weight_decay=p["weight_decay"], fused=True)
    micro_batch_size = p["micro_batch_size"] or p["batch_size"] // (p["accumulation_steps"] or 1)
    steps = run.total_epochs * math.ceil(len(x) / p["batch_size"])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps, p))
    metrics: dict[str, Any] = {}
    run.state(model=model, optimizer=optimizer, scheduler=scheduler, metrics=metrics)
    run.resume()

    for epoch in run.epochs():
        model.train()
        loss_sum = torch.zeros((), device=device)
        order = torch.randperm(len(x)).to(device)  # on the CPU, so that every kind of device sees the same order
        for rows in run.batches(torch.split(order, p["batch_size"])):
            optimizer.zero_grad()
            for part in torch.split(rows, micro_batch_size):  # their gradients add up to the mean over all rows
                with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                    loss = F.cross_entropy(forward(x[part]), y[part])
                (loss * (len(part) / len(rows))).backward()  # type: ignore[no-untyped-call]
                loss_sum += loss.detach() * len(part)  # no .item(): it would wait for the device at every step
            optimizer.step()
            scheduler.step()

        if run.cut_short:  # the loss of half an epoch is nobody's
            break
        train_loss = float(loss_sum) / len(x)
        val_loss, val_accuracy = evaluate(model, val_images, val_labels)
        metrics.update(train_loss=train_loss, val_loss=val_loss, val_accuracy=val_accuracy)
        run.report(epoch=epoch, **metrics, lr=scheduler.get_last_lr()[0])
        run.log(f"Epoch {epoch}/{run.total_epochs} - Loss: {train_loss:.4f}")
        run.checkpoint()

    if run.finished:  # a stopped job keeps its checkpoint, not a half-trained model
        shape = list(x.shape[1:])
        run.save_model(model, metrics, config={"model": p["model"], "classes": classes, "image_shape": shape})


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


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy over all of `x`, in full precision."""
    model.eval()
    loss_sum, correct = torch.zeros((), device=x.device), torch.zeros((), device=x.device)
    for images, labels in zip(torch.split(x, 1024), torch.split(y, 1024), strict=True):
        scores = model(images)
        loss_sum += F.cross_entropy(scores, labels, reduction="sum")
        correct += (scores.argmax(1) == labels).sum()
    return float(loss_sum) / len(x), float(correct) / len(x)


def to_device(images: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """(N, H, W) or (N, H, W, C) to (N, C, H, W) on the device."""
    with_channels = images[..., None] if images.ndim == 3 else images
    return torch.from_numpy(np.ascontiguousarray(with_channels)).to(device).permute(0, 3, 1, 2)


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
