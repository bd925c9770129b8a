"""What a candidate's weights were pretrained on, judged anew before anything is merged."""

from __future__ import annotations

from dataclasses import dataclass

from search.backbones import Catalogue
from search.candidate import Candidate
from search.provenance import IMAGENET_1K, provenance
from search.training.recipe import Recipe

FROM_SCRATCH = "none (from scratch)"
ALLOWED = (IMAGENET_1K, f"{IMAGENET_1K} (declared)", FROM_SCRATCH)
"""What metrics.json may say of a candidate's pretraining."""


@dataclass(frozen=True)
class Origin:
    """The verdict on one network's pretraining."""

    allowed: bool
    pretraining: str  # for reports, as in leaderboard.csv
    reason: str  # one line: what decided


def judge_recipe(recipe: Recipe, catalogue: Catalogue) -> Origin:
    """The verdict on what a recipe starts from.

    Args:
        recipe: names the backbone and where its weights come from.
        catalogue: the run's; what it declares of a backbone counts as in the search.
    """
    if recipe.weights == "none":
        return Origin(True, FROM_SCRATCH, "trained from scratch")
    declared = {backbone.name: backbone.pretraining for backbone in catalogue.backbones}
    found = provenance(recipe.backbone, declared.get(recipe.backbone))
    return Origin(found.allowed, found.pretraining, found.reason)


def judge_origin(candidate: Candidate, catalogue: Catalogue) -> Origin:
    """The verdict on a candidate: both today's judgement and the recorded one must allow it."""
    origin = judge_recipe(candidate.recipe, catalogue)
    recorded = str(candidate.metrics.get("pretraining", "unknown"))
    if origin.allowed and recorded not in ALLOWED:
        return Origin(False, recorded, f"recorded as pretrained on {recorded}")
    return origin
