"""What arms have found in earnest: a line for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.training.metrics import roc_auc
from tests.benchmarks.study.replay.arms import A_FIFTH, OURS
from tests.benchmarks.study.replay.summary import QUANTILES, final

Floats = NDArray[np.float64]


def summary(
    rows: pd.DataFrame,
    scores: Mapping[tuple[str, int], Floats],
    tables: Mapping[int, pd.DataFrame],
    resamplings: int,
) -> pd.DataFrame:
    """Means over the seeds of what each arm ends with, and by how much ours, and ours with a fifth
    of the time, is above it on report: the mean, its interval, and the least and the most of the
    seeds, since an interval does not hold a training's own chance.

    `when_as_good` is when ours has a look at select that is as good as the arm's best one, in parts
    of the arm's time, median over the seeds (inf: it never has).

    Args:
        rows: arm, seed, seconds, best_auc, auc_report, the last one of each arm and seed its end.
        scores: by arm and seed, (N,) of the network that it ends with; NaN: not read.
        tables: report of each seed, N rows.
        resamplings: of the groups, for an interval.
    """
    last, told = final(rows), []
    arms = rows["arm"].unique().tolist()
    for arm in arms:
        its = last.loc[arm]
        line: dict[str, Any] = {"arm": arm, "seeds": len(its)}
        line |= {name: its[name].mean() for name in ("best_auc", "auc_report", "seconds")}
        for own, name in ((OURS, "above_report"), (A_FIFTH, "fifth_above_report")):
            if own in arms and arm not in (OURS, A_FIFTH):
                line |= _above(own, arm, name, scores, tables, resamplings)
        if OURS in arms and arm != OURS:
            line["when_as_good"] = np.median([_when_as_good(rows, seed, arm) for seed in tables])
        told.append(line)
    return pd.DataFrame(told).round(4)


def _above(
    own: str,
    arm: str,
    name: str,
    scores: Mapping[tuple[str, int], Floats],
    tables: Mapping[int, pd.DataFrame],
    resamplings: int,
) -> dict[str, float]:
    """Seeds divide the same images anew: groups are drawn once for all of them."""
    known = pd.unique(pd.concat([table["group"] for table in tables.values()]))
    pairs = []
    for seed, table in tables.items():
        read = ~(np.isnan(scores[own, seed]) | np.isnan(scores[arm, seed]))
        groups = pd.Index(known).get_indexer(table["group"])[read]
        targets = table["target"].to_numpy()[read]
        pairs.append((scores[own, seed][read], scores[arm, seed][read], targets, groups))

    def differences(counts: NDArray[np.int64]) -> list[float]:
        found = []
        for ours, its, targets, groups in pairs:
            index = np.repeat(np.arange(len(groups)), counts[groups])
            if not 0 < targets[index].sum() < len(index):
                return []
            found.append(roc_auc(ours[index], targets[index]) - roc_auc(its[index], targets[index]))
        return found

    found = differences(np.ones(len(known), np.int64))
    generator, even = np.random.default_rng(0), np.full(len(known), 1 / len(known))
    drawn = (differences(generator.multinomial(len(known), even)) for _ in range(resamplings))
    # Draws of one class are left out.
    low, high = np.quantile([np.mean(one) for one in drawn if one], QUANTILES)
    return {
        name: float(np.mean(found)),
        f"{name}_low": float(low),
        f"{name}_high": float(high),
        f"{name}_least": min(found),
        f"{name}_most": max(found),
    }


def _when_as_good(rows: pd.DataFrame, seed: int, arm: str) -> float:
    ours, its = (rows[(rows["arm"] == one) & (rows["seed"] == seed)] for one in (OURS, arm))
    # Looks alone, of both: at an end, on all of select, the luck of the best look is gone.
    aim, looks = its["best_auc"].iloc[:-1].max(), ours.iloc[:-1]
    reached = looks[looks["best_auc"] >= aim]
    return float(reached["seconds"].iloc[0] / its["seconds"].iloc[-1]) if len(reached) else np.inf
