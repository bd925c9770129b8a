"""What arms have found in earnest: a line for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.training.metrics import roc_auc
from tests.benchmarks.bench_anytime import resampled_groups
from tests.benchmarks.replay.arms import OURS
from tests.benchmarks.replay.summary import QUANTILES, final

Floats = NDArray[np.float64]


def summary(
    rows: pd.DataFrame,
    scores: Mapping[tuple[str, int], Floats],
    tables: Mapping[int, pd.DataFrame],
    resamplings: int,
) -> pd.DataFrame:
    """Means over the seeds of what each arm ends with, and by how much ours is above it on report.

    `when_as_good` is when ours has a look at select that is as good as the arm's best one, in parts
    of the arm's time, median over the seeds (inf: it never has).

    Args:
        rows: arm, seed, seconds, best_auc, auc_report, the last one of each arm and seed its end.
        scores: by arm and seed, (N,) of the network that it ends with; NaN: not read.
        tables: report of each seed, N rows.
        resamplings: of the groups, for an interval.
    """
    last, told = final(rows), []
    for arm in rows["arm"].unique():
        its = last.loc[arm]
        line: dict[str, Any] = {"arm": arm, "seeds": len(its)}
        line |= {name: its[name].mean() for name in ("best_auc", "auc_report", "seconds")}
        if arm != OURS and OURS in last.index.get_level_values("arm"):
            line |= _above(arm, scores, tables, resamplings)
            line["when_as_good"] = np.median([_when_as_good(rows, seed, arm) for seed in tables])
        told.append(line)
    return pd.DataFrame(told).round(4)


def _above(
    arm: str,
    scores: Mapping[tuple[str, int], Floats],
    tables: Mapping[int, pd.DataFrame],
    resamplings: int,
) -> dict[str, float]:
    everywhere, drawn = [], []
    for seed, table in tables.items():
        read = ~(np.isnan(scores[OURS, seed]) | np.isnan(scores[arm, seed]))
        ours, its = scores[OURS, seed][read], scores[arm, seed][read]
        own = table[read]
        targets = own["target"].to_numpy()

        def above(
            index: NDArray[np.int64], ours: Floats = ours, its: Floats = its, targets: Any = targets
        ) -> float:
            return roc_auc(ours[index], targets[index]) - roc_auc(its[index], targets[index])

        everywhere.append(above(np.arange(len(own))))
        drawn.append([above(index) for index in resampled_groups(own, resamplings)])
    # Draws of one class are left out, of each seed its own.
    shortest = min(map(len, drawn))
    low, high = np.quantile(np.mean([one[:shortest] for one in drawn], axis=0), QUANTILES)
    return {
        "above_report": float(np.mean(everywhere)),
        "above_report_low": float(low),
        "above_report_high": float(high),
    }


def _when_as_good(rows: pd.DataFrame, seed: int, arm: str) -> float:
    ours, its = (rows[(rows["arm"] == one) & (rows["seed"] == seed)] for one in (OURS, arm))
    # Looks alone, of both: at an end, on all of select, the luck of the best look is gone.
    aim, looks = its["best_auc"].iloc[:-1].max(), ours.iloc[:-1]
    reached = looks[looks["best_auc"] >= aim]
    return float(reached["seconds"].iloc[0] / its["seconds"].iloc[-1]) if len(reached) else np.inf
