"""The recipes: what can be run without code."""

from fastapi import APIRouter
from pydantic import BaseModel

from api.auth import Reader
from epochcast.answers import Recipe
from shared import recipes

router = APIRouter(prefix="/recipes", tags=["recipes"])


class RecipeList(BaseModel):
    items: list[Recipe]


@router.get("")
async def list_recipes(_identity: Reader) -> RecipeList:
    """Each with the JSON Schema of its hyperparameters."""
    return RecipeList(items=[Recipe.model_validate(recipe.describe()) for recipe in recipes.CATALOGUE.values()])


@router.get("/{name}")
async def get_recipe(_identity: Reader, name: str) -> Recipe:
    return Recipe.model_validate(recipes.get(name).describe())
