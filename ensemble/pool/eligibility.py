"""Which candidates may be merged: those that came to their end, and that the rules allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from search.catalogue.backbones import Catalogue
from search.catalogue.provenance import IMAGENET_1K, provenance
from search.errors import UserError
from search.machine.files import CANDIDATES, LEADERBOARD
from search.machine.progress import tell_line
from search.settings.data import Objective
from search.settings.search import SearchSettings
from search.training.candidate import METRICS, Candidate
from search.training.objective import value_of
from search.training.recipe import Recipe

FEWEST = 2
"""Candidates that there must be for anything to be merged."""


COMPLETE = "complete"
"""State of a trial that came to its end, in leaderboard.csv."""


def trial_states(run: Path) -> dict[str, str]:
    """What became of each trial, by its candidate's name: the study, as it was last written down.

    Raises:
        UserError: if the run has no leaderboard that can be read.
    """
    path = run / LEADERBOARD
    try:
        # Texts: 0007 is a name, no number.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        names, states = table["candidate"].tolist(), table["state"].tolist()
    except (OSError, ValueError, KeyError) as error:
        reason = "it is absent" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(
            f"{path} must say which candidates are complete, but {reason}; write it with "
            f"`python -m search report --out {run}`"
        ) from None
    return dict(zip(names, states, strict=True))


def finished_candidates(run: Path, console: Console, objective: Objective) -> list[Candidate]:
    """Candidates that the study calls complete, with or without weights, best on select first.

    Args:
        run: the folder of the search.
        console: is told which others lie there: a copy, say, or one whose process died before the
            study knew of it.
        objective: what the search went by.

    Raises:
        UserError: as `trial_states`, or if a candidate was not measured by the objective.
    """
    states = trial_states(run)
    folders = sorted(path.parent for path in (run / CANDIDATES).glob(f"*/{METRICS}"))
    unknown = [path.name for path in folders if states.get(path.name) != COMPLETE]
    if unknown:
        tell_line(
            console,
            f"left out, because {LEADERBOARD} does not call them complete: {', '.join(unknown)}; "
            f"if they are, `python -m search report --out {run}` writes it anew",
        )
    finished = [Candidate(path) for path in folders if states.get(path.name) == COMPLETE]
    metrics = {c.name: c.metrics for c in finished}
    values = {name: value_of(found, objective) for name, found in metrics.items()}
    return sorted(
        finished, key=lambda c: (-values[c.name], metrics[c.name]["params_exact"], c.name)
    )


def check_enough(
    run: Path,
    settings: SearchSettings,
    finished: Sequence[Candidate],
    usable: Sequence[Candidate],
    tainted: Sequence[str],
) -> None:
    """Checks that there is something to merge.

    Args:
        run: the folder of the search, for the message.
        settings: of the search.
        finished: complete candidates.
        usable: those of them that can be merged.
        tainted: names of those that the pretraining rule forbids.

    Raises:
        UserError: if there are fewer than two, with what became of the others.
    """
    if len(usable) >= FEWEST:
        return
    if len(finished) < FEWEST:
        raise UserError(
            f"{run} must hold two finished candidates or more, found {len(finished)}; search on "
            f"with `python -m search run --out {run}` and more --trials"
        )
    gone = [c.name for c in finished if not c.has_weights]
    reasons = []
    if gone:
        reasons.append(f"the weights of {', '.join(gone)} were deleted by --keep {settings.keep}")
    if tainted:
        reasons.append(f"{', '.join(tainted)} broke the pretraining rule")
    raise UserError(
        f"{run} must hold two candidates or more that can be merged, found {len(usable)} of "
        f"{len(finished)} finished: {' and '.join(reasons)}; search again with a larger --keep"
        + (", or add --allow-tainted" if tainted else "")
    )


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
