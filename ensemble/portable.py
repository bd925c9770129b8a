"""What of recipes, specs and settings may leave the machine: no folders, no addresses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ensemble.model import ModelSpec
from search.settings import SearchSettings
from search.training.recipe import Recipe

KEPT_TO_ITSELF = frozenset({"storage", "out"})
"""Settings that say more of the machine than of the model; a storage URL may hold a password."""


def portable_recipe(recipe: Recipe) -> Recipe:
    """The recipe without the folder that its starting weights lay in."""
    if recipe.weights_file is None:
        return recipe
    return replace(recipe, weights_file=Path(recipe.weights_file).name)


def portable_spec(spec: ModelSpec) -> ModelSpec:
    """The spec with portable recipes."""
    return replace(spec, trunks=tuple(portable_recipe(recipe) for recipe in spec.trunks))


def last_parts(path: Path) -> str:
    """The last two parts of a path: enough to tell files apart, without the user's folders."""
    return "/".join(path.absolute().parts[-2:]).lstrip("/")


def paths_of(settings: SearchSettings) -> list[tuple[str, Path]]:
    """The settings that are paths, by name."""
    return [(name, value) for name, value in vars(settings).items() if isinstance(value, Path)]


def portable_settings(settings: SearchSettings) -> dict[str, Any]:
    """The settings as plain values, without the user's folders and secrets."""
    paths = {name: last_parts(path) for name, path in paths_of(settings)}
    plain = {**settings.to_yaml(), **paths}
    return {name: value for name, value in plain.items() if name not in KEPT_TO_ITSELF}
