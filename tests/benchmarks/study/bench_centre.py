"""How strongly the centre of the space should augment, and whether it is too regular otherwise, for
trainings as short as a search's.

    python -m tests.benchmarks.study.bench_centre --train-labels F --train-images D \\
        --train-groups G --val-labels F --val-images D --val-groups G --backbones B --pool P \\
        --weights-dir W --image-size 80 --epochs 2 --folder W --output centre.csv

A backbone of the pool at the centre of the space, but for what a variant says: the same images,
every seed its own division, order and views. `centre_differences.csv` has the means over the seeds,
and what a variant makes against the first, with 95% intervals that resample groups. The space's
centre is chosen by select; report is told beside it. The same command goes on after a stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cyclopts import run
from rich.console import Console

from search.data.splits import Splits
from search.machine.device import Runtime, resolve_device
from search.pixels.loading.reading import Reader
from search.settings.search import SearchSettings
from search.training.metrics import roc_auc
from search.training.recipe import Recipe
from search.training.train import train
from tests.benchmarks.measured import (
    Floats,
    kept_in,
    kept_scores,
    publish,
    resampled_groups,
    use_one_thread,
)
from tests.benchmarks.opening import opened_images, space_of

STRENGTH, SMOOTHING, AVERAGE = "augmentation_strength", "label_smoothing", "average_power"

VARIANTS: dict[str, dict[str, Any]] = {
    "light at 0.6": {STRENGTH: 0.6},
    "light at 0.3": {STRENGTH: 0.3},
    "light at 0.15": {STRENGTH: 0.15},
    "light at 0.6, no smoothing": {STRENGTH: 0.6, SMOOTHING: 0.0},
    "light at 0.6, no average": {STRENGTH: 0.6, AVERAGE: None},
    "light at 0.3, neither": {STRENGTH: 0.3, SMOOTHING: 0.0, AVERAGE: None},
}
"""The first was the centre; the last is what the default of 70bbfd5 that did best in the recorded
curves had otherwise."""

SPLITS = ("select", "report")

MEASURED = "measured_{}.csv"
"""In a candidate's folder: y_pred of each row of a split."""

RESAMPLINGS = 1_000


def main(
    settings: SearchSettings | None = None,
    *,
    output: Path | None = None,
    folder: Path | None = None,
    backbone: str | None = None,
    variants: Sequence[str] = tuple(VARIANTS),
    seeds: int = 3,
    quick: bool = False,
) -> None:
    """Trains what is missing in the folder, and compares.

    Args:
        settings: of a search on these images, with its --epochs; the demo set's, from scratch, by
            default.
        output: CSV file, a row a change and seed.
        folder: keeps the trained candidates, so that the same command goes on; default: none.
        backbone: of the pool; default: its first.
        variants: those that are measured; the others are compared with the first.
        seeds: divisions and trainings.
        quick: a few images: whether it works at all.
    """
    use_one_thread()
    settings, resamplings = settings or SearchSettings(), RESAMPLINGS
    measured = {name: VARIANTS[name] for name in variants}
    if quick:
        settings = replace(settings, limit_train=64, limit_val=80, image_size=32, epochs=1)
        measured = dict(list(VARIANTS.items())[::5])
        seeds, resamplings = 1, 20
    console, rows = Console(), list[dict[str, Any]]()
    drawn: dict[str, list[Floats]] = {name: [] for name in measured}
    with kept_in(folder) as kept:
        for seed in range(seeds):
            own = replace(settings, seed=seed, image_size=settings.image_size or 64).resolved()
            assert own.image_size is not None
            with opened_images(own, [own.image_size]) as (splits, reader):
                space = space_of(own, own.image_size, reader.side)
                named = {one.name: one for one in space.backbones}
                chosen = named[backbone or space.backbones[0].name]
                centre = replace(space.recipe(space.centre(chosen)), epochs=own.epochs, seed=seed)
                for name, variant in measured.items():
                    place = kept / f"{chosen.name}, {name}, {seed}"
                    scores = _scores(replace(centre, **variant), splits, reader, place)
                    aucs = _aucs(splits, scores)
                    told = dict(zip((f"auc_{split}" for split in SPLITS), aucs, strict=True))
                    rows.append(
                        {
                            "variant": name,
                            "seed": seed,
                            "backbone": centre.backbone,
                            "images": round((own.epochs or 0) * len(splits.fit)),
                            **told,
                        }
                    )
                    console.print(rows[-1], highlight=False, soft_wrap=True)
                    drawn[name].append(_drawn(splits, scores, resamplings))
    publish(pd.DataFrame(rows), drawn, "variant", [f"auc_{split}" for split in SPLITS], output)


def _scores(recipe: Recipe, splits: Splits, reader: Reader, folder: Path) -> list[Floats]:
    """Of select and report, by the weights that a training keeps; what is there already is not done
    again."""
    runtime = Runtime(resolve_device("cpu"))
    candidate = train(recipe, splits, folder, runtime=runtime, reader=reader)
    return [
        kept_scores(folder / MEASURED.format(split), candidate, reader, getattr(splits, split))
        for split in SPLITS
    ]


def _aucs(splits: Splits, scores: list[Floats]) -> Floats:
    targets = [getattr(splits, split)["target"] for split in SPLITS]
    return np.array([roc_auc(*pair) for pair in zip(scores, targets, strict=True)], np.float64)


def _drawn(splits: Splits, scores: list[Floats], resamplings: int) -> Floats:
    """(resamplings, 2): the AUC on select and on report, of groups drawn again."""
    found = []
    for split, own in zip(SPLITS, scores, strict=True):
        table = getattr(splits, split)
        targets = table["target"].to_numpy()
        found.append(
            [roc_auc(own[rows], targets[rows]) for rows in resampled_groups(table, resamplings)]
        )
    # Draws of one class are left out.
    shortest = min(map(len, found))
    return np.array([own[:shortest] for own in found]).T


if __name__ == "__main__":
    run(main)
