"""Which candidates of a run are finished, and whether there are enough to merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from search.candidate import METRICS, Candidate
from search.errors import UserError
from search.settings import SearchSettings

FEWEST = 2
"""Candidates that there must be for anything to be merged."""


def is_finished(candidate: Candidate) -> bool:
    """A pruned trial leaves a candidate, too, but no best epoch."""
    return candidate.metrics.get("best_epoch") is not None


def finished_candidates(folder: Path) -> list[Candidate]:
    """Complete candidates of a folder, with or without weights, best on select first."""
    folders = sorted(path.parent for path in folder.glob(f"*/{METRICS}"))
    finished = [c for c in map(Candidate, folders) if is_finished(c)]
    metrics = {c.name: c.metrics for c in finished}
    return sorted(
        finished, key=lambda c: (-metrics[c.name]["auc"], metrics[c.name]["params_exact"], c.name)
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
