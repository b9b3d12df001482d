"""The catalogue: wrong hyperparameters are refused by name before anything runs, defaults are filled in."""

import math
import runpy
import subprocess
import sys
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from shared import recipes
from tests.listening import CHECKOUT


def test_defaults_are_filled_in() -> None:
    filled = recipes.validate("image-classifier", {"lr": 1, "width": 8})
    assert (filled["lr"], filled["width"], filled["dataset"]) == (1.0, 8, "digits")


@pytest.mark.parametrize(
    ("hyperparameters", "field"),
    [
        ({"lr": "0.01"}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"lr": math.inf}, "lr"),
        ({"lr": 0}, "lr"),
        ({"lr": True}, "lr"),
        ({"batch_size": 64.0}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 10**30}, "batch_size"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"dataset": "cifar"}, "dataset"),
        ({"learning_rate": 0.1}, "learning_rate"),
    ],
)
@pytest.mark.parametrize("name", list(recipes.CATALOGUE))
def test_wrong_value_is_refused_by_the_name_of_its_field(
    name: str, hyperparameters: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationError) as refusal:
        recipes.validate(name, hyperparameters)
    assert refusal.value.errors()[0]["loc"] == (field,)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("image-classifier", {"dataset": "npz"}, "needs data_dir"),
        ("image-classifier", {"data_dir": "/data"}, "digits needs none"),
        ("tabular-classifier", {"dataset": "csv", "path": "a.csv"}, "needs path .* and target"),
        ("tabular-classifier", {"dataset": "wine", "target": "y"}, "wine brings its own"),
        ("image-classifier", {"batch_size": 64, "micro_batch_size": 24}, "batch_size 64 must be micro_batch_size"),
        ("image-classifier", {"batch_size": 64, "micro_batch_size": 128}, "a divisor of batch_size"),
        ("tabular-classifier", {"accumulation_steps": 5}, "a divisor of batch_size"),
        ("tabular-classifier", {"micro_batch_size": 8, "accumulation_steps": 2}, "a divisor of batch_size"),
        ("language-model", {"text_dir": "/a", "text_file": "/b"}, "both given"),
        ("language-model", {"width": 100, "heads": 3}, "width 100 is not heads"),
    ],
)
def test_fields_that_need_or_exclude_each_other_are_explained(
    name: str, hyperparameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        recipes.validate(name, hyperparameters)


def test_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(recipes.UnknownRecipe) as refusal:
        recipes.get("gpt")
    listed = "image-classifier, tabular-classifier, language-model"
    assert str(refusal.value) == f"there is no recipe 'gpt'; there are {listed}"


@pytest.mark.parametrize("recipe", recipes.CATALOGUE.values(), ids=lambda recipe: recipe.name)
def test_schema_is_valid_describes_every_field_and_accepts_the_defaults(recipe: recipes.Recipe) -> None:
    schema = recipe.describe()["hyperparameters"]
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(recipes.validate(recipe.name, {}), schema)
    assert all("description" in field for field in schema["properties"].values())


@pytest.mark.parametrize("recipe", recipes.CATALOGUE.values(), ids=lambda recipe: recipe.name)
def test_script_run_by_hand_has_the_same_defaults(recipe: recipes.Recipe) -> None:
    script = CHECKOUT / "worker/recipes" / f"{recipe.name.replace('-', '_')}.py"
    assert runpy.run_path(str(script))["PARAMS"] == recipes.validate(recipe.name, {})


def test_catalogue_needs_no_torch() -> None:
    code = "import sys, shared.recipes; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
