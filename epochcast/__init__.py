"""epochcast: submit PyTorch training jobs, watch them live, and report from inside them.

Names are imported when they are first used, so that `import epochcast` in a training script costs a few milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epochcast.async_client import AsyncClient
    from epochcast.client import Client
    from epochcast.training import Run, init

__all__ = ["AsyncClient", "Client", "Run", "init"]
__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "epochcast.async_client",
    "Client": "epochcast.client",
    "Run": "epochcast.training",
    "init": "epochcast.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'epochcast' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
