"""What replayed arms have found: a line for each time given and arm; intervals are over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import inf

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.benchmarks.study.replay.arms import OURS, PLAIN

RESAMPLINGS = 2_000
"""Of the seeds, for an interval."""

QUANTILES = (0.025, 0.975)

Values = NDArray[np.float64]


def summary(replayed: Mapping[float, pd.DataFrame]) -> pd.DataFrame:
    """A line a time and arm.

    `auc_*`: median of the final AUC over the seeds; `above_*`: by how much ours is above it, mean
    over the seeds; each with `_low` and `_high`. `share_of_time`: when it is, on select, where
    plain Optuna ends, the medians over their seeds, in parts of the time (inf: it does not come to
    it). `spent`: median share of the time that it used.

    Args:
        replayed: what `replay` found, by the time in trainings to their end.
    """
    told = []
    for length, rows in sorted(replayed.items()):
        finals = final(rows)
        for arm in rows["arm"].unique():
            its = finals.loc[arm]
            line: dict[str, object] = {"lengths": length, "arm": arm, "seeds": len(its)}
            for split in ("select", "report"):
                column = f"auc_{split}"
                line |= _with_interval(column, its[column].to_numpy(), np.median)
                above = (finals.loc[OURS][column] - its[column]).to_numpy()
                line |= _with_interval(f"above_{split}", above, np.mean)
            line |= share_of_time(rows, arm)
            line["spent"] = (its["spent"] / its["seconds"]).median()
            told.append(line)
    return pd.DataFrame(told).round(4)


def variants_summary(replayed: Mapping[float, pd.DataFrame]) -> pd.DataFrame:
    """Final AUC on select with other rules, and the mean of its difference over the seeds from
    those of now, best first; arguments as for `summary`."""
    told = []
    for length, rows in sorted(replayed.items()):
        finals = final(rows)["auc_select"]
        for arm in rows["arm"].unique():
            difference = (finals[arm] - finals[OURS]).to_numpy()
            told.append(
                {
                    "lengths": length,
                    "variant": arm,
                    "auc_select": finals[arm].median(),
                    **_with_interval("difference", difference, np.mean),
                    "spent": (final(rows).loc[arm]["spent"] / rows["seconds"].max()).median(),
                }
            )
    order = ["lengths", "difference"]
    return pd.DataFrame(told).sort_values(order, ascending=[True, False]).round(4)


def final(rows: pd.DataFrame) -> pd.DataFrame:
    """The last row of each arm and seed, by both."""
    return rows.groupby(["arm", "seed"], sort=False).last()


def share_of_time(rows: pd.DataFrame, arm: str, other: str = PLAIN) -> dict[str, float]:
    """The time at which an arm is, on select, where another ends, the medians of both over their
    seeds, in parts of the time given; with an interval, for which the seeds of each are drawn
    anew."""
    aims = final(rows).loc[other]["auc_select"].to_numpy()
    curves = [
        (one["seconds"].to_numpy(), one["auc_select"].to_numpy())
        for _, one in rows[rows["arm"] == arm].groupby("seed")
    ]

    @cache
    def times(aim: float) -> Values:
        """When each seed is there."""
        found = [np.searchsorted(aucs, aim) for _, aucs in curves]
        return np.array(
            [
                seconds[place] if place < len(seconds) else inf
                for place, (seconds, _) in zip(found, curves, strict=True)
            ]
        )

    generator = np.random.default_rng(0)
    whole = float(rows["seconds"].max())
    drawn = []
    for _ in range(RESAMPLINGS):
        aim = float(np.median(generator.choice(aims, len(aims))))
        drawn.append(_median(generator.choice(times(aim), len(curves))) / whole)
    low, high = np.quantile(drawn, QUANTILES, method="inverted_cdf")
    return {
        "share_of_time": _median(times(float(np.median(aims)))) / whole,
        "share_of_time_low": float(low),
        "share_of_time_high": float(high),
    }


def _median(values: Values) -> float:
    """The lower one of two: infinite ones have no mean."""
    return float(np.sort(values)[(len(values) - 1) // 2])


def _with_interval(name: str, values: Values, statistic: Callable[..., Values]) -> dict[str, float]:
    """A statistic over the seeds, and its interval."""
    generator = np.random.default_rng(0)
    drawn = values[generator.integers(len(values), size=(RESAMPLINGS, len(values)))]
    low, high = np.quantile(statistic(drawn, axis=1), QUANTILES)
    return {name: float(statistic(values)), f"{name}_low": float(low), f"{name}_high": float(high)}
