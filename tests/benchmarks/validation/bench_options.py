"""What each training option brings on methods that training has not shown, and under stress.

    python -m tests.benchmarks.validation.bench_options --folder W \\
        --output results/validation/options.csv

One recipe, the demo pool's first backbone at the centre of the space, is trained plainly, and with
each option alone. Every seed has its own division: other methods are held out. Figures are on
report, which chooses nothing here; `options_differences.csv` has the mean over the seeds of what an
option changes, with 95% intervals that resample groups. An option takes longer or shorter by a few
percent; images are the same.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cyclopts import run
from rich.console import Console

from search.settings.search import SearchSettings
from search.training.recipe import Recipe
from tests.benchmarks.measured import (
    FIGURES,
    divisions,
    kept_in,
    publish,
    resampled_groups,
    scores_of,
    use_one_thread,
)
from tests.benchmarks.opening import space_of

PLAIN = "plain"

OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "without the average of the weights": {"average_power": None},
    "one compression history": {"compression_quality": 80},
    "random degradations": {"degradation_rounds": 2},
    "patch masking": {"patch_masking": 0.2},
    "self-blended fakes": {"self_blended": 0.25},
    "fakes mixed with reals": {"mixed_with_real": 0.25},
    "both classes of a group in a batch": {"batch_order": "groups"},
}
"""As the space draws them."""

RESAMPLINGS = 1_000


def main(
    settings: SearchSettings | None = None,
    *,
    output: Path | None = None,
    folder: Path | None = None,
    epochs: float = 12,
    seeds: int = 3,
    quick: bool = False,
) -> None:
    """Trains what is missing in the folder, and compares.

    Args:
        settings: of a search on these images; the demo set's, from scratch, by default. Methods are
            held out whatever they say.
        output: CSV file, a row an option and seed.
        folder: keeps the trained candidates, so that the same command goes on; default: none.
        epochs: of each training.
        seeds: divisions and trainings of each option.
        quick: a few images: whether it works at all.
    """
    use_one_thread()
    settings = settings or SearchSettings()
    options, resamplings, console = OPTIONS, RESAMPLINGS, Console()
    if quick:
        settings = replace(settings, limit_train=64, limit_val=80, image_size=32)
        options = {name: OPTIONS[name] for name in (PLAIN, "patch masking")}
        epochs, seeds, resamplings = 1, 1, 20
    rows: list[dict[str, Any]] = []
    drawn: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in options}
    with kept_in(folder) as kept:
        for seed, own, judge in divisions(settings, seeds, kept):
            recipe = replace(_recipe(own, judge.reader.side), epochs=epochs)
            held_out = judge.splits.report["method"][judge.splits.report["unseen"]]
            for name, changes in options.items():
                began = time.monotonic()
                changed = replace(recipe, **changes)
                found = judge.candidate(changed, kept / f"{name.replace(' ', '-')}-{seed}")
                scores = scores_of(found)
                rows.append(
                    {
                        "option": name,
                        "seed": seed,
                        "held_out": " ".join(sorted(set(held_out))),
                        "auc_select": found.metrics["auc"],
                        **dict(zip(FIGURES, judge.figures(scores), strict=True)),
                    }
                )
                told = ", ".join(f"{figure} {rows[-1][figure]:.4f}" for figure in FIGURES)
                seconds = time.monotonic() - began
                console.print(f"seed {seed}, {name}: {told}; {seconds:.0f} s", highlight=False)
                drawn[name].append(
                    np.array(
                        [
                            judge.figures(scores, index)
                            for index in resampled_groups(judge.table, resamplings)
                        ]
                    )
                )
    publish(pd.DataFrame(rows), drawn, "option", FIGURES, output)


def _recipe(settings: SearchSettings, canvas: int) -> Recipe:
    """The centre of the space for the pool's first backbone, with a rate that falls at its end."""
    assert settings.image_size is not None
    space = space_of(settings, settings.image_size, canvas)
    return space.recipe(space.centre(space.backbones[0]))


if __name__ == "__main__":
    run(main)
