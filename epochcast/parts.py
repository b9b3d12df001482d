"""Which of a run's objects hold only a part of a tensor, and other ranks the rest (FSDP, DTensor, ShardedTensor)."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any


def is_sharded(objects: Mapping[str, Any]) -> bool:
    """Whether any of the objects holds a part of a tensor that other ranks hold the rest of."""
    group = sys.modules.get("torch.distributed.distributed_c10d")
    if group is None or not group.is_initialized():
        return False
    return any(is_part(value) for value in objects.values())


def is_part(value: Any) -> bool:
    import torch

    if isinstance(value, torch.nn.Module):
        fsdp = sys.modules.get("torch.distributed.fsdp")
        if fsdp is not None and any(isinstance(one, fsdp.FullyShardedDataParallel) for one in value.modules()):
            return True
        return any(map(_is_piece, value.parameters())) or any(map(_is_piece, value.buffers()))
    return any(map(_is_piece, _leaves(value.state_dict() if hasattr(value, "state_dict") else value)))


def _is_piece(value: object) -> bool:
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is not None and isinstance(value, tensors.DTensor):
        return True
    older = sys.modules.get("torch.distributed._shard.sharded_tensor")
    return older is not None and isinstance(value, older.ShardedTensor)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _leaves(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    else:
        yield value
