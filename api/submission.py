"""From the body of a submission to a resolved spec: every default filled in, every wrong field named."""

import hashlib
from typing import Any

import orjson
from pydantic import ValidationError

from api.problems import Problem, wrong_field, wrong_fields
from epochcast.jobs import TrainingJobSpec
from shared import recipes
from shared.recipes import UnknownRecipe
from shared.store import IdempotencyKey


def resolve(content: Any) -> TrainingJobSpec:
    """The spec as it will be stored and run. Raises a 422 problem."""
    try:
        spec = TrainingJobSpec.model_validate(content)
    except ValidationError as error:
        raise wrong_fields(error) from None
    _refuse_what_comes_later(spec)
    assert spec.recipe is not None  # bundles were refused above
    try:
        recipe = recipes.get(spec.recipe)
    except UnknownRecipe as error:
        raise wrong_field("recipe", str(error), spec.recipe) from None
    try:
        hyperparameters = recipes.validate(spec.recipe, spec.hyperparameters)
    except ValidationError as error:
        raise wrong_fields(error, within="hyperparameters") from None
    return spec.model_copy(
        update={
            "name": spec.name or spec.recipe,
            "hyperparameters": hyperparameters,
            "total_epochs": spec.total_epochs or recipe.default_epochs,
        }
    )


def _refuse_what_comes_later(spec: TrainingJobSpec) -> None:
    if spec.bundle is not None:
        raise wrong_field("bundle", "this version runs recipes only; see GET /api/v1/recipes", spec.bundle)
    if spec.resources.nodes > 1:
        raise wrong_field("resources.nodes", "this version trains on one host; leave it at 1", spec.resources.nodes)
    processes = spec.resources.procs_per_node
    if processes is not None and processes > 1:
        raise wrong_field("resources.procs_per_node", "this version trains in one process; leave it out", processes)
    if spec.on_oom == "shrink" and spec.recipe is None and "micro_batch_size" not in spec.hyperparameters:
        hint = "shrink changes micro_batch_size and accumulation_steps; give them in hyperparameters, or use fail"
        raise wrong_field("on_oom", hint, spec.on_oom)


def idempotency_key(key: str | None, content: Any) -> IdempotencyKey | None:
    """The client's own name for this submission, with the hash of what it sent. Raises a 422 problem."""
    if key is None:
        return None
    if not (1 <= len(key) <= 255 and key.isascii() and key.isprintable()):
        raise Problem(422, "invalid", "Idempotency-Key must be 1 to 255 printable ASCII characters")
    canonical = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    return IdempotencyKey(key, hashlib.sha256(canonical).hexdigest())
