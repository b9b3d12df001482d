"""The manual's code blocks: which are run as they stand, what each needs around it, and which are run elsewhere."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests import markdown

LANGUAGES = ("bash", "console", "python", "javascript")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    code: str

    @property
    def key(self) -> tuple[str, str]:
        """The page and the block's first line: what the tables below name it by."""
        return self.page, self.code.splitlines()[0]

    def __str__(self) -> str:
        return f"{self.page} {self.code.splitlines()[0][:50]}"


def blocks() -> Iterator[Block]:
    """Every block of code of every page; JSON has tests of its own, plain text is no code."""
    for path in markdown.pages():
        for language, code in _FENCE.findall(path.read_text()):
            if language in LANGUAGES:
                yield Block(str(path.relative_to(markdown.CHECKOUT)), language, code)


def commands(block: Block) -> list[str]:
    """The commands of a shell block, each on one line, prompts and comments left out."""
    joined = block.code.replace("\\\n", " ")
    lines = (line.removeprefix("$ ") for line in joined.splitlines())
    return [re.sub(r"\s{2,}#.*$", "", line) for line in lines if line.strip()]


# --- what is not run as it stands, and which test runs it instead (`tests/…`) or why none can

DOCUMENT = "tests/e2e/test_document.py"
EXAMPLES = "tests/integrations/test_examples.py"
ELSEWHERE_COMMANDS = {
    "git clone <this repository> epochcast && cd epochcast": "there is no public address yet",
    "make setup": "tests run in what it makes",
    "make check": "CI runs it beside the tests",
    "make test": "this is it",
    "make bench": "tests/test_benchmarks.py",
    "make bench ARGS='--only recovery'": "tests/test_benchmarks.py",
    "make demo": "tests/shared/test_demo.py",
    "make up": "tests/shared/test_local.py",
    "make up &": "tests/shared/test_local.py",
    "make faults": "tests/faults/test_table.py",
    "make soak ARGS='--minutes 10 --seed 7'": "tests/faults/test_negative_controls.py",
    ".venv/bin/epochcast up --port 8000 --data-dir .epochcast --slots 2": "tests/shared/test_local.py",
    ".venv/bin/epochcast up --no-auth": "tests/shared/test_local.py",
    "epochcast submit examples/lightning/train.py --epochs 5 --watch": EXAMPLES,
    "epochcast submit examples/transformers/train.py --lr 0.01 --epochs 5 --watch": EXAMPLES,
    "epochcast submit examples/accelerate/train.py --epochs 5 --watch": EXAMPLES,
    "epochcast list --watch --status running": "tests/cli/test_live.py",
    "epochcast hosts --watch": "tests/cli/test_live.py",
    "epochcast --install-completion": "tests/cli/test_live.py",
    "epochcast tensorboard 42 43": "tests/cli/test_tensorboard.py",
    "torchrun --nproc-per-node 2 worker/recipes/image_classifier.py": "tests/worker/test_recipe_ranks.py",
}
ELSEWHERE_BLOCKS = {
    ("README.md", "const ws = new WebSocket('ws://localhost:8000/api/v1/training-jobs/1/stream');"): (
        f"lines of the document's own snippet, which {DOCUMENT} runs on a server that asks for no token"
    ),
    ("docs/docker.md", "printf 'EPOCHCAST_SECRET=%s\\nPOSTGRES_PASSWORD=%s\\nREDIS_PASSWORD=%s\\n' \\"): (
        "needs Docker; tests/test_compose.py checks the files"
    ),
    ("docs/docker.md", "docker compose -f docker-compose.yml -f docker-compose.gpu.yml up -d --build --wait"): (
        "needs Docker and a GPU; tests/test_compose.py checks the files"
    ),
    (
        "docs/http-api.md",
        "const source = new EventSource(`/api/v1/training-jobs/42/events?token=${token}`);"
        "  // an EventSource can't set headers",
    ): "needs a page of the gateway; tests/api/rest/test_event_stream.py reads the same stream",
    ("docs/training-scripts.md", "import torch"): "tests/test_docs.py",
    (
        "docs/training-scripts.md",
        "from epochcast.integrations.lightning import EpochcastCallback",
    ): "tests/integrations/test_lightning.py and tests/integrations/test_transformers.py",
    ("docs/websocket-api.md", "const jobId = 42;"): DOCUMENT,
    ("docs/websocket-api.md", "import asyncio"): DOCUMENT,
    ("docs/websocket-api.md", "const token = 'your_jwt_token';"): DOCUMENT,
    ("docs/websocket-api.md", "const ws = new WebSocket("): DOCUMENT,
    ("docs/websocket-api.md", "ws.onclose = (event) => {"): DOCUMENT,
    ("docs/websocket-api.md", "let reconnectAttempts = 0;"): DOCUMENT,
    ("docs/websocket-api.md", "import { useEffect, useState } from 'react';"): "tests/dashboard/test_component.py",
    ("docs/websocket-api.md", "async function pollTrainingStatus(jobId) {"): DOCUMENT,
}

# --- what is changed in a block before it runs

CHANGED = (
    # Few epochs: what is shown is how, not how well.
    (r"--epochs \d+", "--epochs 2"),
    (r"total_epochs=\d+", "total_epochs=2"),
    (r'"total_epochs": \d+', '"total_epochs": 2'),
    (r"steps_per_epoch=\d+", "steps_per_epoch=2"),
    # There may be no GPU, and there is one host: what would happen is asked.
    (r"(--gpus .*)--watch", r"\1--dry-run"),
)

# Names that an excerpt uses and doesn't make.
_TRAINING = """
import torch, epochcast
from torch.utils.data import DataLoader, TensorDataset
from torch.nn.parallel import DistributedDataParallel
dataset = TensorDataset(torch.rand(64, 4))
def build(): return torch.nn.Linear(4, 1)
model = build()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
PRELUDES = {
    ("docs/python-client.md", 'job = client.submit(recipe="image-classifier", total_epochs=3)'): (
        "import epochcast\nclient = epochcast.Client()\n"
    ),
    ("docs/training-scripts.md", "loader = DataLoader(dataset, batch_size=64, sampler=run.sampler(len(dataset)))"): (
        f"{_TRAINING}run = epochcast.init(total_epochs=2)\n"
    ),
    ("docs/training-scripts.md", "optimizer.zero_grad()"): (
        f"{_TRAINING}run = epochcast.init({{'micro_batch_size': 16}})\nrows = torch.rand(64, 4)\n"
        "def loss_of(part): return model(part).square().mean()\n"
    ),
    ("docs/training-scripts.md", "torch.distributed.init_process_group()"): (
        f"{_TRAINING}import os, tempfile\nmean_over_ranks = 0.5\n"
        "os.environ |= {'RANK': '0', 'WORLD_SIZE': '1', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '0'}\n"
    ),
}


def changed(code: str) -> str:
    for pattern, replacement in CHANGED:
        code = re.sub(pattern, replacement, code)
    return code
