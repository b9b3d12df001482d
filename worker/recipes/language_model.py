"""Trains a small GPT on the bytes of any text; by itself, on the sources of Python's standard library.

An ordinary training script: `python language_model.py` runs it on a laptop with the parameters below, and
`torchrun --nproc-per-node 2 language_model.py` in two processes (ranks) that train one model together. Inside
a job epochcast gives the parameters, keeps the checkpoints and shows the reports. Bytes need no tokenizer.
"""

import math
import os
import sysconfig
import time
from collections.abc import Callable, Iterator
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
    "text_dir": None,
    "text_file": None,
    "lr": 0.003,
    "weight_decay": 0.1,
    "schedule": "cosine",
    "warmup": 0.05,
    "clip_norm": 1.0,
    "layers": 3,
    "width": 96,
    "heads": 3,
    "context": 128,
    "micro_batch_size": 8,
    "accumulation_steps": 1,
    "steps_per_epoch": 100,
    "dropout": 0.0,
    "val_fraction": 0.1,
    "sample_bytes": 120,
    "compile": False,
}
BYTES = 256
FILE_END = b"\0"  # between files; no text holds it
VAL_WINDOWS = 128
LARGEST_TEXT = 2**32
# Of the standard library: its tests, tables of numbers, and what pip has put beside it.
NOT_STANDARD = ("test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages")


class DataError(ValueError):
    """Raised when the text can't be trained on, or not by so many ranks; the message names the way out."""


def main() -> None:
    run = epochcast.init(PARAMS, total_epochs=3)
    p = run.params
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products need on a GPU
    torch.use_deterministic_algorithms(True)
    # New memory needn't be filled for that: nothing here reads what it hasn't written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device, rank, ranks = join_ranks()
    on_gpu = device.type == "cuda"
    share_size = texts_at_once(p, ranks)

    # The whole text stays on the device, on each rank's, one byte a byte.
    train_text, val_text = (torch.from_numpy(text).to(device) for text in load_text(p, run.seed))  # (bytes,)
    val_windows = evenly_spaced(val_text, p["context"])  # (windows, context + 1), the same in every epoch

    model = GPT(p).to(device)
    forward, unsynced = over_ranks(model, val_windows[:1, :-1])
    if on_gpu and p["compile"]:
        forward = torch.compile(forward)  # type: ignore[assignment]
    if rank == 0:
        run.log(f"{len(train_text):,} bytes to train on, {len(val_text):,} to validate; "
                f"{sum(weight.numel() for weight in model.parameters()):,} weights, {ranks} rank{'s' * (ranks > 1)} on "
                f"{torch.cuda.get_device_name() if on_gpu else 'CPU'}")  # fmt: skip

    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    scales = [weight for weight in model.parameters() if weight.ndim < 2]  # of the norms: not pulled to zero
    groups = [{"params": matrices, "weight_decay": p["weight_decay"]}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=p["lr"], betas=(0.9, 0.95), fused=True)
    steps = run.total_epochs * p["steps_per_epoch"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps, p))
    metrics: dict[str, Any] = {}
    run.state(model=model, optimizer=optimizer, scheduler=scheduler, metrics=metrics)
    run.resume()

    texts_per_step = p["micro_batch_size"] * p["accumulation_steps"]
    for epoch in run.epochs():
        model.train()
        began = time.perf_counter()
        loss_sum = torch.zeros((), device=device)
        random = np.random.default_rng([run.seed, epoch])  # on all ranks the same, and on every kind of device
        for _ in run.batches(range(p["steps_per_epoch"])):
            optimizer.zero_grad()
            # All of a step's texts are drawn at once: in however many parts, over however many ranks they pass
            # through, they are the same. A copy that blocks would wait for the device to end all that came before it.
            starts = torch.from_numpy(random.integers(len(train_text) - p["context"], size=texts_per_step))
            own = starts[rank::ranks].to(device, non_blocking=True)
            parts = torch.split(own, share_size)  # their gradients add up to the mean over all texts
            for part in parts:
                window = windows_at(train_text, part, p["context"])  # (micro-batch / ranks, context + 1)
                with nullcontext() if part is parts[-1] else unsynced():
                    with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                        loss = next_byte_loss(forward(window[:, :-1]), window[:, 1:]).mean()
                    (loss * (ranks * len(part) / texts_per_step)).backward()  # DDP divides by the ranks
                loss_sum += loss.detach() * len(part)  # no .item(): it would wait for the device at every step
            nn.utils.clip_grad_norm_(model.parameters(), p["clip_norm"])
            optimizer.step()
            scheduler.step()

        if run.cut_short:  # the loss of half an epoch is nobody's
            break
        train_loss = over_all_ranks(loss_sum) / (p["steps_per_epoch"] * texts_per_step)
        trained_s = time.perf_counter() - began  # over_all_ranks has waited for the device
        val_loss = over_all_ranks(evaluate(model, val_windows[rank::ranks], share_size)) / val_windows[:, 1:].numel()
        metrics.update(train_loss=train_loss, val_loss=val_loss, val_bits_per_byte=val_loss / math.log(2))
        if rank == 0:
            run.report(epoch=epoch, **metrics, lr=scheduler.get_last_lr()[0])
            run.log(f"Epoch {epoch}/{run.total_epochs} - Loss: {train_loss:.4f}")
            run.log(f"{p['steps_per_epoch'] * texts_per_step * p['context'] / trained_s:,.0f} bytes a second")
            if p["sample_bytes"]:
                run.log(f"Sample: {sample(model, p['sample_bytes'], seed=run.seed + epoch)!r}")
        run.checkpoint()  # by rank 0: state and metrics are the same on all

    if run.finished:  # a stopped job keeps its checkpoint, not a half-trained model
        config = {name: p[name] for name in ("layers", "width", "heads", "context")}
        run.save_model(model, metrics, config={"model": "gpt", "vocabulary": "bytes", **config})
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


def texts_at_once(p: dict[str, Any], ranks: int) -> int:
    """A rank's share of a micro-batch, rounded up. Raises DataError where a rank would have none in a step."""
    micro_batch_size: int = p["micro_batch_size"]
    accumulation_steps: int = p["accumulation_steps"]
    if micro_batch_size * accumulation_steps < ranks:
        raise DataError(
            f"micro_batch_size {micro_batch_size} x accumulation_steps {accumulation_steps} texts are what all {ranks} "
            f"ranks share in a step, and each needs one; make them {ranks} or more, or take fewer ranks"
        )
    return math.ceil(micro_batch_size / ranks)


def learning_rate(step: int, steps: int, p: dict[str, Any]) -> float:
    """The factor on the peak: a linear warm-up, then half a cosine down to zero, or constant."""
    warmup: int = round(p["warmup"] * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if p["schedule"] == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


# ---- The model: pre-norm blocks, rotary positions, one matrix for bytes in and bytes out ----------------------------


class GPT(nn.Module):
    """Bytes (B, T), T at most `context`, to scores of each next byte (B, T, 256)."""

    def __init__(self, p: dict[str, Any]) -> None:
        super().__init__()
        self.context: int = p["context"]
        self.embedding = nn.Embedding(BYTES, p["width"])  # also the last layer's matrix
        self.blocks = nn.ModuleList(Block(p["width"], p["heads"], p["dropout"]) for _ in range(p["layers"]))
        self.norm = nn.RMSNorm(p["width"])
        for name, weight in self.named_parameters():
            if weight.ndim >= 2:
                # What is added to the stream is smaller the more layers add to it (GPT-2).
                is_added = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * p["layers"]) if is_added else 0.02)
        cos, sin = rotations(p["context"], p["width"] // p["heads"])
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)  # (context, head size / 2)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, window: Tensor) -> Tensor:
        length = window.shape[1]
        x = self.embedding(window)  # (B, T, width)
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        return F.linear(self.norm(x), self.embedding.weight)


class Block(nn.Module):
    """Attention to the bytes before, then a small network on each byte; both add to `x` (B, T, width)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, head size)
        attended = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(batch, length, width)))
        added: Tensor = self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))
        return x + added


def rotations(context: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Rotary positions (Su et al. 2021): cosine and sine of each place's angles, both (context, head size / 2)."""
    speeds = 10_000.0 ** -(torch.arange(0, head_size, 2) / head_size)
    angles = torch.outer(torch.arange(context), speeds)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (first half, second half) of (B, heads, T, head size) by the angles of their place."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def next_byte_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """In nats, of each byte: (B * T,)."""
    return F.cross_entropy(scores.flatten(0, 1).float(), targets.flatten(), reduction="none")


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


@torch.no_grad()
def evaluate(model: nn.Module, windows: Tensor, micro_batch_size: int) -> Tensor:
    """Loss summed over all windows in full precision, in nats."""
    model.eval()
    loss_sum = torch.zeros((), device=windows.device)
    for window in torch.split(windows, micro_batch_size):
        loss_sum += next_byte_loss(model(window[:, :-1]), window[:, 1:]).sum()
    return loss_sum


def over_all_ranks(value: Tensor) -> float:
    """Its sum over all ranks. An epoch waits for its device here, twice, and nowhere else."""
    if distributed.is_initialized():
        distributed.all_reduce(value)
    return float(value)


@torch.no_grad()
def sample(model: GPT, count: int, seed: int) -> str:
    """What the model writes after the end of a file. Its random numbers are its own: training draws as without it."""
    model.eval()
    random = torch.Generator().manual_seed(seed)
    device = model.embedding.weight.device
    written = list(FILE_END)
    for _ in range(count):
        window = torch.tensor([written[-model.context :]], device=device)
        likely = F.softmax(model(window)[0, -1].float().cpu() / 0.8, dim=0)  # 0.8: a little less daring than it is
        written.append(int(torch.multinomial(likely, 1, generator=random)))
    return bytes(written[1:]).decode("utf-8", "replace")


# ---- Data: the bytes to train on and those to validate on -----------------------------------------------------------


def load_text(p: dict[str, Any], seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Two arrays of bytes, each longer than a window."""
    if p["text_file"] is not None:
        source = Path(p["text_file"])
        text = read_text(source)
        if text is None:
            raise DataError(f"{source} is not UTF-8 text; convert it, or name another file")
        cut = len(text) - round(p["val_fraction"] * len(text))
        train, val = text[:cut], text[cut:]
    else:
        source = Path(p["text_dir"] or sysconfig.get_path("stdlib"))
        train, val = (FILE_END.join(texts) for texts in split_files(source, p, seed))
    for part, content in (("training", train), ("validation", val)):
        if len(content) <= p["context"] + 1:
            raise DataError(
                f"{source} gives {len(content)} bytes for {part}, and a window of context {p['context']} needs more; "
                "add text, change val_fraction, or take a smaller context"
            )
    return np.frombuffer(bytearray(train), np.uint8), np.frombuffer(bytearray(val), np.uint8)


def split_files(folder: Path, p: dict[str, Any], seed: int) -> tuple[list[bytes], list[bytes]]:
    """Whole files to train on and to validate on: no part of a validation file is ever trained on."""
    texts = []
    size = 0
    for path in files_in(folder, only_python=p["text_dir"] is None):
        if text := read_text(path):
            texts.append(text)
            size += len(text)
        if size > LARGEST_TEXT:
            raise DataError(f"{folder} holds over {LARGEST_TEXT >> 30} GiB of text; name a smaller folder")
    if len(texts) < 2:
        raise DataError(
            f"{folder} holds {len(texts)} files of UTF-8 text, and at least two are needed, one to validate on; "
            "add files, or give a single one as text_file"
        )
    order = np.random.default_rng(seed).permutation(len(texts))
    val_count = min(max(1, round(p["val_fraction"] * len(texts))), len(texts) - 1)
    return [texts[place] for place in order[val_count:]], [texts[place] for place in order[:val_count]]


def files_in(folder: Path, only_python: bool) -> Iterator[Path]:
    """In the same order on every host; hidden ones are left out."""

    def unreadable(error: OSError) -> None:
        raise DataError(f"{folder} can't be read on this host: {error.strerror}; name a folder there") from error

    for root, folders, names in os.walk(folder, onerror=unreadable):
        left_out = NOT_STANDARD if only_python else ()
        folders[:] = sorted(name for name in folders if name not in left_out and not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file() and (name.endswith(".py") if only_python else not name.startswith(".")):
                yield path


def read_text(path: Path) -> bytes | None:
    """The file's bytes; None if they are no text."""
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise DataError(f"{path} is larger than {LARGEST_TEXT >> 30} GiB; give a part of it")
        content = path.read_bytes()
        content.decode()
    except OSError as error:
        raise DataError(f"{path} can't be read on this host: {error.strerror}; name a text file there") from error
    except UnicodeDecodeError:
        return None
    return None if FILE_END in content else content


def evenly_spaced(text: Tensor, context: int) -> Tensor:
    """At most VAL_WINDOWS windows, from the text's beginning to its end."""
    count = min(VAL_WINDOWS, (len(text) - 1) // context)
    starts = torch.linspace(0, len(text) - context - 1, count, device=text.device).long()
    return windows_at(text, starts, context)


def windows_at(text: Tensor, starts: Tensor, context: int) -> Tensor:
    """(B,) places to (B, context + 1) bytes: the model sees all but the last and learns to name all but the first."""
    return text[starts[:, None] + torch.arange(context + 1, device=text.device)].long()


if __name__ == "__main__":
    main()
