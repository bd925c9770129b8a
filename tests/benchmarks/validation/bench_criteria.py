"""Which figure on select foretells how a candidate does on methods that nobody has seen?

    python -m tests.benchmarks.validation.bench_criteria --folder W \\
        --output results/validation/criteria.csv

Configurations drawn from a search's space are trained alike, with methods held out; every seed has
its own division and its own draws. `criteria_correlations.csv` has, for each figure on select,
Spearman's rank correlation with AUC on report's own methods, which neither fit nor select shows,
and what choosing by it brings: that AUC of the best of CHOSEN_FROM drawn candidates, less the same
by the AUC of seen methods, which is what a random split measures. Means over the seeds; intervals
resample candidates. Report chooses nothing: it is what is foretold.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cyclopts import run
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import spearmanr

from search.settings.search import SearchSettings
from search.study.decisions.space import Space
from search.training.loop import NonFiniteLossError
from search.training.recipe import Recipe
from tests.benchmarks.measured import divisions, kept_in, scores_of, use_one_thread
from tests.benchmarks.opening import space_of

RANDOM_SPLIT = "auc_seen"

CRITERIA = (RANDOM_SPLIT, "auc", "auc_unseen", "auc_stress", "mean")
"""On select."""

FORETOLD = "report_unseen"

CHOSEN_FROM = 6
"""Candidates, as a short search finishes them."""

RESAMPLINGS = 2_000

Floats = NDArray[np.float64]


def main(
    settings: SearchSettings | None = None,
    *,
    output: Path | None = None,
    folder: Path | None = None,
    count: int = 12,
    epochs: float = 8,
    seeds: int = 3,
    quick: bool = False,
) -> None:
    """Trains what is missing in the folder, and correlates.

    Args:
        settings: of a search on these images; the demo set's, from scratch, by default. Methods are
            held out whatever they say.
        output: CSV file, a row a candidate.
        folder: keeps the trained candidates, so that the same command goes on; default: none.
        count: candidates of a seed.
        epochs: of each training.
        seeds: divisions.
        quick: a few images: whether it works at all.
    """
    use_one_thread()
    settings, resamplings = settings or SearchSettings(), RESAMPLINGS
    if quick:
        settings = replace(settings, limit_train=64, limit_val=80, image_size=32)
        count, epochs, seeds, resamplings = 3, 1, 1, 20
    console, rows = Console(), list[dict[str, Any]]()
    with kept_in(folder) as kept:
        for seed, own, judge in divisions(settings, seeds, kept):
            assert own.image_size is not None
            space = space_of(own, own.image_size, judge.reader.side)
            for number, recipe in enumerate(_recipes(space, count, seed, epochs)):
                began = time.monotonic()
                try:
                    found = judge.candidate(recipe, kept / f"{seed}-{number:02d}")
                except NonFiniteLossError:
                    continue  # a search would have it failed as well
                row = _row(found.metrics, judge.figures(scores_of(found)))
                about = {"seed": seed, "number": number, "backbone": recipe.backbone}
                rows.append({**about, "augmentation": recipe.augmentation, **row})
                line = ", ".join(f"{name} {value:.4f}" for name, value in row.items())
                seconds = time.monotonic() - began
                console.print(f"{seed}-{number:02d}: {line}; {seconds:.0f} s", highlight=False)
    table = pd.DataFrame(rows)
    compared = correlations(table, resamplings)
    console.print(compared.to_string(index=False), highlight=False, soft_wrap=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        table.round(5).to_csv(output, index=False)
        compared.round(4).to_csv(output.with_name(f"{output.stem}_correlations.csv"), index=False)


def _recipes(space: Space, count: int, seed: int, epochs: float) -> Iterator[Recipe]:
    """The first backbone's centre, then draws around centres."""
    generator = np.random.default_rng((7, seed))
    for number in range(count):
        drawn = space.near_centre(generator) if number else space.centre(space.backbones[0])
        yield replace(space.recipe(drawn), epochs=epochs, seed=seed)


def _row(metrics: dict[str, Any], report: Floats) -> dict[str, float]:
    parts = {name: float(metrics[name]) for name in CRITERIA if name != "mean"}
    parts["mean"] = (parts["auc"] + parts["auc_unseen"] + parts["auc_stress"]) / 3
    seen, unseen, stress = report.tolist()
    return {**parts, "report_seen": seen, FORETOLD: unseen, "report_stress": stress}


def correlations(table: pd.DataFrame, resamplings: int = RESAMPLINGS) -> pd.DataFrame:
    """A row a criterion: rank correlation with FORETOLD, and what choosing by it brings."""
    generator = np.random.default_rng(0)
    of_seeds = [own.reset_index(drop=True) for _, own in table.groupby("seed")]
    whole = [_told(of_seeds, [np.arange(len(own)) for own in of_seeds])]
    drawn = [
        _told(of_seeds, [generator.integers(0, len(own), len(own)) for own in of_seeds])
        for _ in range(resamplings)
    ]
    low, high = np.nanquantile(np.array(drawn), (0.025, 0.975), axis=0)
    rows = []
    for number, name in enumerate(CRITERIA):
        row: dict[str, Any] = {"criterion": name, "candidates": len(table)}
        for column, figure in enumerate(("correlation", "gain")):
            row[figure] = whole[0][number, column]
            row[f"{figure}_low"] = low[number, column]
            row[f"{figure}_high"] = high[number, column]
        rows.append(row)
    return pd.DataFrame(rows)


def _told(of_seeds: list[pd.DataFrame], indices: list[NDArray[np.int64]]) -> Floats:
    """(criteria, 2): rank correlation and gain, means over the seeds."""
    generator = np.random.default_rng(1)
    found = []
    for own, index in zip(of_seeds, indices, strict=True):
        rows = own.iloc[index]
        worth = rows[FORETOLD].to_numpy()
        values = {name: rows[name].to_numpy() for name in CRITERIA}
        few = [
            generator.choice(len(rows), min(CHOSEN_FROM, len(rows)), replace=False)
            for _ in range(50)
        ]
        reached = {
            name: np.mean([worth[one[value[one].argmax()]] for one in few])
            for name, value in values.items()
        }
        # Draws with replacement may leave a single candidate, which has no rank.
        found.append(
            [
                (
                    spearmanr(value, worth).statistic if len(set(worth)) > 1 else np.nan,
                    reached[name] - reached[RANDOM_SPLIT],
                )
                for name, value in values.items()
            ]
        )
    mean: Floats = np.nanmean(np.array(found), axis=0)
    return mean


if __name__ == "__main__":
    run(main)
