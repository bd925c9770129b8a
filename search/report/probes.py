"""The probe of a pool beside what became of its backbones: the table, and how far it was right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import permutation_test, rankdata

from search.errors import UserError
from search.report.recorded import Tell
from search.study.prior import Probe, ordered, read_probes

FEWEST_TO_RANK = 3
"""Backbones below which a rank correlation says nothing."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's, of a few pairs."""

    value: float
    count: int
    chance: float
    """Share of all orders, or of many drawn ones, in which it would be as high."""

    def __str__(self) -> str:
        return (
            f"{self.value:+.2f} over {self.count} backbones (as high in {self.chance:.0%} of "
            "random orders)"
        )


def rank_correlation(
    first: Mapping[str, float], second: Mapping[str, float]
) -> RankCorrelation | None:
    """Spearman's rank correlation over the names that both have; None for fewer than
    `FEWEST_TO_RANK`, or where one of them tells none from another."""
    names = [name for name in first if name in second]
    if len(names) < FEWEST_TO_RANK:
        return None
    ranks = [rankdata([values[name] for name in names]) for values in (first, second)]
    x, y = (rank - rank.mean() for rank in ranks)
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    if scale == 0:
        return None

    def statistic(permuted: Floats, axis: int = -1) -> Floats:
        # Rounded: equal sums of other orders must count as equal.
        found: Floats = np.round((permuted * y).sum(axis=axis) / scale, 9)
        return found

    tested = permutation_test(
        (x,),
        statistic,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=9_999,
        alternative="greater",
        rng=0,
    )
    return RankCorrelation(float(tested.statistic), len(names), float(tested.pvalue))


def probed(run: Path, tell: Tell) -> list[Probe]:
    """The probes of a run, best first; none, and told, if their file is damaged."""
    try:
        return ordered(read_probes(run))
    except UserError as error:
        tell(f"{error}; it is left out")
        return []


def how_right(
    probes: Sequence[Probe], rows: Sequence[Mapping[str, Any]], looks: pd.DataFrame
) -> str:
    """How far the order of the probes is that of what was found later, in sentences.

    Args:
        probes: of the backbones.
        rows: of the leaderboard, with `is_baseline`.
        looks: see `search.report.course.search_looks`.
    """
    aucs = {probe.backbone: probe.auc for probe in probes if probe.auc is not None}
    presets = looks[looks["kind"] == "preset"]
    first = presets.drop_duplicates("backbone").set_index("backbone")["auc"].to_dict()
    final: dict[str, float] = {}
    for row in rows:
        if row["state"] == "complete" and not row["is_baseline"]:
            final[row["backbone"]] = max(final.get(row["backbone"], 0.0), row["auc"])
    told = []
    for what, found in (
        ("the first look at each preset", {str(name): float(auc) for name, auc in first.items()}),
        ("the best complete candidate of each backbone, trained unequally long", final),
    ):
        correlation = rank_correlation(aucs, found)
        if correlation is not None:
            told.append(f"with {what}: {correlation}")
    if not told:
        return (
            f"Fewer than {FEWEST_TO_RANK} backbones can be compared: no rank correlation is told."
        )
    return f"Spearman's rank correlation of the probe {'; '.join(told)}."
