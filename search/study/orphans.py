"""Folders of trainings that the study has lost: their figures are kept, apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from search.errors import UserError
from search.training.candidate import RECIPE, Candidate
from search.training.recipe import Recipe
from search.training.train import free_fields

ORPHANS = "orphans"


def set_aside_orphan(folder: Path, recipe: Recipe, tell: Callable[[str], None]) -> None:
    """Moves a trial's folder to the run's orphans/ if it is another training's: the study lost a
    trial (restored from a copy, say) and gave its number to this one. Its figures stay; its weights
    and its checkpoint, which nothing could use, are deleted."""
    path = folder / RECIPE
    if not path.exists():
        return
    try:
        found = Candidate(folder).recipe
    except UserError:
        found = None
    if found is not None and _what(found) == _what(recipe):
        return
    orphans = folder.parent.parent / ORPHANS
    orphans.mkdir(exist_ok=True)
    number = 1
    while (orphan := orphans / f"{folder.name}-{number}").exists():
        number += 1
    folder.rename(orphan)
    Candidate(orphan).drop_weights()
    Candidate(orphan).drop_checkpoint()
    tell(
        f"{folder.name} held another training: its figures are in {ORPHANS}/{orphan.name}, its "
        "weights are deleted"
    )


def _what(recipe: Recipe) -> Recipe:
    names = free_fields(recipe)
    return replace(recipe, **{name: getattr(Recipe, name) for name in names})
