"""Checkpoints of a model that no rank holds whole (FSDP, DTensor): a folder, to which each rank adds its own part.

`__<rank>_<n>.distcp` are the tensors as torch.distributed.checkpoint (DCP) writes them, `.metadata` says which piece is
where, `state.pt` is what rank 0 alone would write, and `random-<rank>.pt` a rank's random states inside an epoch.
`.metadata` comes last, under another name first: a folder without it is not whole.

DCP pickles what is no tensor. So a checkpoint can run code where it is read: it must be a job's own, as it is here.
"""

import contextlib
import pickle
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epochcast.checkpoints import (
    Checkpoint,
    HalfLoaded,
    UnreadableCheckpoint,
    Written,
    fsync_folder,
    measured,
    read_file,
    write_as,
)
from epochcast.parts import is_part

if TYPE_CHECKING:
    import torch

METADATA = ".metadata"
SHARED = "state.pt"
OWN = "random-{rank}.pt"


def write(
    out_dir: Path, objects: Mapping[str, Any], checkpoint: Checkpoint, used: Collection[str]
) -> tuple[str, list[Written]]:
    """Called by all ranks. The folder's name, the same for all, and this rank's files, complete on disk.

    `checkpoint`: without contents, which come from `objects`, and with this rank's random states. `used`: names that
    this run has given; their folders may be in the store and gone from here. Raises OSError.
    """
    import torch.distributed as dist
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    rank = dist.get_rank()
    name = _same_name(out_dir, checkpoint, used)
    folder = out_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    parts, rest = _split(objects)
    try:
        _together(lambda: _write_own(folder, rank, rest, checkpoint))
        save(_states_of_parts(parts), storage_writer=FileSystemWriter(folder))
        fsync_folder(folder)
        fsync_folder(out_dir)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, CheckpointException):
            raise _cause(error) from error
        raise
    own = sorted([*folder.glob(f"__{rank}_*.distcp"), *folder.glob(OWN.format(rank=rank))])
    if rank == 0:
        own += [folder / SHARED, folder / METADATA]
    return name, [measured(file) for file in own]


def read(folder: Path, rank: int) -> Checkpoint:
    """Called by all ranks: what is not in parts; `fill` or `whole` read the rest. Raises UnreadableCheckpoint."""
    found: list[Checkpoint] = []

    def read_own() -> None:
        _check_whole(folder)
        shared = read_file(folder / SHARED)
        own = folder / OWN.format(rank=rank)
        states = read_file(own).random_states if own.exists() else None
        found.append(Checkpoint(shared.contents, shared.epoch, shared.step, states))

    try:
        _together(read_own)  # a rank that fell back alone would leave the others waiting in `fill`
    except OSError as error:
        raise UnreadableCheckpoint(str(error)) from error
    return found[0]


def fill(folder: Path, objects: Mapping[str, Any]) -> list[str]:
    """Called by all ranks, of which there may be others than wrote: loads the parts, and returns their names.

    Raises HalfLoaded, and then in all ranks; ValueError when the checkpoint was made with other names.
    """
    from torch.distributed.checkpoint import state_dict as of
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    modules = _modules(objects)
    parts, _ = _split(objects)
    reader = FileSystemReader(folder)
    held = {key.partition(".")[0] for key in reader.read_metadata().state_dict_metadata}
    if missing := [name for name in parts if name not in held]:
        raise ValueError(
            f"the checkpoint holds {', '.join(sorted(held))} in parts, but not {', '.join(missing)}; "
            "give run.state the objects it was made with, or restart the job from scratch"
        )
    states = _states_of_parts(parts)
    try:
        with _quiet():
            load(states, storage_reader=reader)
    except (CheckpointException, RuntimeError) as error:
        raise HalfLoaded(str(_cause(error)).splitlines()[0]) from error
    for name, value in parts.items():
        if name in modules:
            of.set_model_state_dict(value, states[name])
        elif _is_optimizer(value):
            of.set_optimizer_state_dict(_trained_by(name, value, modules), value, states[name])
        elif hasattr(value, "load_state_dict"):
            value.load_state_dict(states[name])
    return list(parts)


def whole(folder: Path) -> dict[str, Any]:
    """All parts put together, as tensors on the CPU: as much memory as the whole model and its optimizer.

    Raises UnreadableCheckpoint.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    found: dict[str, Any] = {}
    try:  # as torch's own `dcp_to_torch_save` does: there is no public call that needs no template
        with _quiet():
            _load_state_dict(
                found,
                storage_reader=FileSystemReader(folder),
                planner=_EmptyStateDictLoadPlanner(),  # type: ignore[no-untyped-call]
                no_dist=True,
            )
    except (CheckpointException, RuntimeError) as error:
        raise UnreadableCheckpoint(str(_cause(error)).splitlines()[0]) from error
    return found


def full_state(model: "torch.nn.Module") -> dict[str, Any]:
    """Called by all ranks: the model's whole tensors, on the CPU, in rank 0; elsewhere nothing."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(model, options=options))


def _write_own(folder: Path, rank: int, rest: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """What a rank writes itself, without DCP."""
    if checkpoint.random_states is not None:
        write_as(folder / OWN.format(rank=rank), Checkpoint({}, checkpoint.epoch, None, checkpoint.random_states))
    if rank == 0:
        write_as(folder / SHARED, Checkpoint(_states(rest), checkpoint.epoch, checkpoint.step))


def _together(do: Callable[[], None]) -> None:
    """Raises in all ranks what `do` raises in one: the others would wait for that one in the next collective."""
    import torch.distributed as dist

    error: BaseException | None = None
    try:
        do()
    except Exception as raised:
        error = raised
    if not (dist.is_available() and dist.is_initialized()):
        if error is not None:
            raise error
        return
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, None if error is None else f"{type(error).__name__}: {error}".splitlines()[0])
    if error is not None:
        raise error
    for rank, text in enumerate(told):
        if text is not None:
            raise OSError(f"rank {rank} could not do its part: {text}")


def _check_whole(folder: Path) -> None:
    """By the sizes that `.metadata` implies: what is missing or cut off is found before anything is loaded."""
    try:
        metadata = pickle.loads((folder / METADATA).read_bytes())
        for piece in metadata.storage_data.values():
            size = (folder / piece.relative_path).stat().st_size
            if size < piece.offset + piece.length:
                raise UnreadableCheckpoint(f"{piece.relative_path} is cut off at {size} bytes")
    except UnreadableCheckpoint:
        raise
    except Exception as error:  # pickle raises a dozen types on damaged bytes
        raise UnreadableCheckpoint(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _same_name(out_dir: Path, checkpoint: Checkpoint, used: Collection[str]) -> str:
    """Chosen by rank 0, where the names that were used are known."""
    import torch.distributed as dist

    name = checkpoint.stem
    number = 1
    while name in used or (out_dir / name).exists():
        number += 1
        name = f"{checkpoint.stem}.{number}"
    told: list[str] = [name]
    dist.broadcast_object_list(told, src=0)
    return told[0]


def _split(objects: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What torch.distributed.checkpoint keeps (models and optimizers always), and the rest."""
    modules = _modules(objects)
    parts = {n: v for n, v in objects.items() if n in modules or _is_optimizer(v) or is_part(v)}
    return parts, {name: value for name, value in objects.items() if name not in parts}


def _states(objects: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in objects.items()}


def _states_of_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """By the parameters' full names, so that another number of ranks finds its own pieces."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    modules = _modules(parts)
    states: dict[str, Any] = {}
    for name, value in parts.items():
        if name in modules:
            states[name] = get_model_state_dict(value)
        elif _is_optimizer(value):
            states[name] = get_optimizer_state_dict(_trained_by(name, value, modules), value)
        else:
            states.update(_states({name: value}))
    return states


def _modules(objects: Mapping[str, Any]) -> dict[str, "torch.nn.Module"]:
    import torch

    return {name: value for name, value in objects.items() if isinstance(value, torch.nn.Module)}


def _is_optimizer(value: object) -> bool:
    import torch

    return isinstance(value, torch.optim.Optimizer)


def _trained_by(name: str, optimizer: Any, modules: Mapping[str, "torch.nn.Module"]) -> "torch.nn.Module":
    """The module whose parameters' names the optimizer's state is kept by."""
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for module in modules.values():
        if trained <= set(module.parameters()):
            return module
    raise ValueError(f"{name} trains parameters of no single model in the checkpoint; name that model too")


def _cause(error: BaseException) -> BaseException:
    """The first rank's own error; OSError (disk full) before what follows from it."""
    failures = [failure[0] for failure in getattr(error, "failures", {}).values()]
    disk = [failure for failure in failures if isinstance(failure, OSError)]
    return next(iter([*disk, *failures]), error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that a process alone reads alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is", category=UserWarning)
        yield
