"""One module a model: what to train, on which batches, with which loss. Named here, imported when asked for.

A module ``huaben.recipes.NAME`` has ``RECIPE``, a class built with ``RECIPE(seed=0)`` that satisfies
:class:`huaben.training.Recipe`.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from ..training import Recipe

RECIPES: dict[str, str] = {
    "autoencoder": "pixels to a few latents and back",
    "text": "the painter's text encoder",
    "clip": "one space for pictures and sentences",
    "painter": "Hunyuan-DiT: sentences, boxes and references to latents",
    "detector": "a picture back to its scene graph",
}


def recipe_names() -> list[str]:
    """Return the names :func:`load_recipe` knows, in training order: a later one may need an earlier one's model."""
    return list(RECIPES)


def load_recipe(name: str, *, seed: int = 0, **settings: Any) -> Recipe:
    """Import and build a recipe.

    Raises:
        UsageError: for an unknown name, with the nearest known one.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(RECIPES)}"
        raise UsageError(f"no recipe is called {name!r}", hint=hint)
    module = importlib.import_module(f"{__name__}.{name}")
    recipe: Recipe = module.RECIPE(seed=seed, **settings)
    return recipe
