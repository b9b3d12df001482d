"""The recipes: what can be run without code."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from api.auth import Reader
from shared import recipes

router = APIRouter(prefix="/recipes", tags=["recipes"])


class RecipeList(BaseModel):
    items: list[dict[str, Any]]


@router.get("")
async def list_recipes(_identity: Reader) -> RecipeList:
    """Each with the JSON Schema of its hyperparameters."""
    return RecipeList(items=[recipe.describe() for recipe in recipes.CATALOGUE.values()])


@router.get("/{name}")
async def get_recipe(_identity: Reader, name: str) -> dict[str, Any]:
    return recipes.get(name).describe()
