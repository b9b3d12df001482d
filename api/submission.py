"""From the body of a submission to a resolved spec: every default filled in, every wrong field named."""

import difflib
import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import orjson
from pydantic import ValidationError

from api.problems import Problem, wrong_field, wrong_fields
from epochcast.jobs import TrainingJobSpec
from shared import recipes
from shared.micro_batch import MicroBatch
from shared.recipes import UnknownRecipe
from shared.reserved_names import why_refused
from shared.store import IdempotencyKey


def resolve(content: Any) -> TrainingJobSpec:
    """The spec as it will be stored and run. Raises a 422 problem."""
    try:
        spec = TrainingJobSpec.model_validate(content)
    except ValidationError as error:
        raise wrong_fields(error) from None
    _refuse_what_comes_later(spec)
    return _of_bundle(spec) if spec.recipe is None else _of_recipe(spec, spec.recipe)


def _of_recipe(spec: TrainingJobSpec, name: str) -> TrainingJobSpec:
    try:
        recipe = recipes.get(name)
    except UnknownRecipe as error:
        raise wrong_field("recipe", str(error), name) from None
    try:
        hyperparameters = recipes.validate(name, spec.hyperparameters)
    except ValidationError as error:
        raise wrong_fields(error, within="hyperparameters") from None
    return spec.model_copy(
        update={
            "name": spec.name or name,
            "hyperparameters": hyperparameters,
            "total_epochs": spec.total_epochs or recipe.default_epochs,
        }
    )


def _of_bundle(spec: TrainingJobSpec) -> TrainingJobSpec:
    for place, argument in enumerate(spec.args):
        if "\0" in argument:
            raise wrong_field(f"args[{place}]", "has a NUL character, which no argument can hold")
    for name, value in spec.env.items():
        reason = why_refused(name, value)
        if reason is not None:
            raise wrong_field(f"env.{name[:100]}", reason)
    name = PurePosixPath(spec.entrypoint or "").stem or "job"
    return spec.model_copy(update={"name": spec.name or name[:200], "total_epochs": spec.total_epochs or 1})


def check_entrypoint(spec: TrainingJobSpec, paths: Sequence[str] | None) -> None:
    """`paths`: the bundle's files; None: the owner has no such bundle. Raises a 422 problem."""
    if paths is None:
        raise wrong_field("bundle", "is none that you uploaded; send it with POST /api/v1/code", spec.bundle)
    entrypoint = spec.entrypoint or ""
    if entrypoint not in paths:
        near = difflib.get_close_matches(entrypoint, paths, n=3, cutoff=0.5) or _scripts(paths)
        hint = f"; it has {', '.join(near)}" if near else ""
        raise wrong_field("entrypoint", f"{entrypoint!r} is no file of the bundle{hint}", entrypoint)
    if not entrypoint.endswith(".py"):
        raise wrong_field("entrypoint", f"{entrypoint!r} is no Python script (.py)", entrypoint)


def _scripts(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if path.endswith(".py")][:3]


def _refuse_what_comes_later(spec: TrainingJobSpec) -> None:
    if spec.resources.nodes > 1:
        raise wrong_field("resources.nodes", "this version trains on one host; leave it at 1", spec.resources.nodes)
    _refuse_shrink_of_nothing(spec)


def _refuse_shrink_of_nothing(spec: TrainingJobSpec) -> None:
    """Every recipe has a micro-batch; of a script only what it is given as one is known to be read."""
    own = {"micro_batch_size": spec.hyperparameters.get("micro_batch_size")}
    if spec.on_oom == "shrink" and spec.recipe is None and MicroBatch.of(own) is None:
        hint = "shrink halves the hyperparameter micro_batch_size, a number that the script reads; give it, or use fail"
        raise wrong_field("on_oom", hint, spec.on_oom)


def idempotency_key(key: str | None, content: Any) -> IdempotencyKey | None:
    """The client's own name for this submission, with the hash of what it sent. Raises a 422 problem."""
    if key is None:
        return None
    if not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
        raise Problem(422, "invalid", "Idempotency-Key must be 1 to 255 printable ASCII characters")
    canonical = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    return IdempotencyKey(key, hashlib.sha256(canonical).hexdigest())
