"""What a search finds by each objective in the same time, on methods that nothing has shown it.

    python -m tests.benchmarks.validation.bench_objectives --timeout 3m --folder W \\
        --output results/validation/objectives.csv

`search run --objective` with methods held out, each seed with its own division, all with the same
time of the clock, results included. Figures are of the candidate that ranks first, on report, which
chooses nothing: all fakes, those of methods that fit has, those of methods that neither fit nor
select shows, and altered images. `objectives_differences.csv` has the means over the seeds and what
an objective changes against `auc`, both with 95% intervals that resample groups. Arms take turns;
the same command goes on after the last that came to its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
import pandas as pd
import pytest
from cyclopts import run
from rich.console import Console

from search.data.inputs import read_splits
from search.machine.files import LEADERBOARD
from search.report.leaderboard import read_leaderboard
from search.run.search import run_search
from search.settings.data import Objective
from search.settings.search import SearchSettings
from search.training.candidate import Candidate
from search.training.metrics import roc_auc
from tests.benchmarks.measured import (
    FIGURES,
    IMAGE_SIZE,
    MEASURED,
    Floats,
    Judge,
    divisions,
    kept_in,
    kept_scores,
    publish,
    resampled_groups,
    use_one_thread,
)
from tests.blank import blank

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

ALL_FIGURES = ("auc", *FIGURES)

RESAMPLINGS = 1_000


def main(
    settings: SearchSettings | None = None,
    *,
    output: Path | None = None,
    folder: Path | None = None,
    objectives: Sequence[Objective] = OBJECTIVES,
    seeds: int = 3,
    quick: bool = False,
) -> None:
    """Searches what is missing in the folder, and compares.

    Args:
        settings: of a search on these images, with its --timeout; the demo set's, from scratch, by
            default. Methods are held out whatever they say.
        output: CSV file, a row an objective and seed.
        folder: keeps the runs, so that the same command goes on; default: none.
        objectives: the others are compared with the first.
        seeds: of divisions and searches.
        quick: a few images: whether it works at all.
    """
    use_one_thread()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    settings, resamplings = settings or SearchSettings(), RESAMPLINGS
    if quick:
        settings = replace(settings, limit_train=64, limit_val=80, image_size=32, probe=False)
        settings = replace(settings, trials=1, epochs=1, timeout=timedelta(minutes=10))
        objectives, seeds, resamplings = ("auc", "mean"), 1, 20
    if settings.timeout is None:
        raise SystemExit("--timeout must say how long each search takes, as --timeout 3m; add it")
    console, rows = Console(), list[dict[str, Any]]()
    drawn: dict[str, list[Floats]] = {objective: [] for objective in objectives}
    with kept_in(folder) as kept:
        for seed, _, judge in divisions(settings, seeds, kept):
            for objective in objectives:
                own = replace(
                    settings,
                    split="unseen",
                    seed=seed,
                    image_size=settings.image_size or IMAGE_SIZE,
                    objective=objective,
                    out=kept / f"{objective}-{seed}",
                )
                row, scores = _searched(own, judge)
                rows.append({"objective": objective, "seed": seed, **row})
                told = ", ".join(f"{figure} {row[figure]:.4f}" for figure in ALL_FIGURES)
                console.print(f"seed {seed}, by {objective}: {told}", highlight=False)
                drawn[objective].append(
                    np.array(
                        [
                            _figures(judge, scores, index)
                            for index in resampled_groups(judge.table, resamplings)
                        ]
                    )
                )
    publish(pd.DataFrame(rows), drawn, "objective", ALL_FIGURES, output)


def _searched(settings: SearchSettings, judge: Judge) -> tuple[dict[str, Any], Floats]:
    """What the best candidate of a search is worth on report, and its scores (N,) of the judge's
    table; what is there already is not done again."""
    assert settings.out is not None
    path = settings.out / MEASURED
    if not path.exists():
        with _no_figures():
            run_search(settings, Console(quiet=True))
    _check_same_division(settings, judge)
    board = read_leaderboard(settings.out / LEADERBOARD)
    complete = board[board["state"] == "complete"]
    if complete.empty:
        raise SystemExit(
            f"{settings.out} must end with a complete candidate, found none in {settings.timeout}; "
            "give --timeout more"
        )
    best = complete.iloc[0]
    candidate = Candidate(settings.out / str(best["path"]))
    scores = kept_scores(path, candidate, judge.reader, judge.table)
    held_out = judge.splits.report["method"][judge.splits.report["unseen"]]
    row = {
        "held_out": " ".join(sorted(set(held_out))),
        "begun": len(board),
        "complete": len(complete),
        "backbone": best["backbone"],
        "augmentation": best["augmentation"],
        "epochs": best["epochs"],
        "select_auc": best["auc"],
        "select_objective": best["objective"],
        **dict(zip(ALL_FIGURES, _figures(judge, scores), strict=True)),
    }
    return row, scores


def _check_same_division(settings: SearchSettings, judge: Judge) -> None:
    """Whether a run was searched on the images that the judge takes for its own."""
    splits = read_splits(settings)
    if splits.fingerprint() != replace(judge.splits, altered=None).fingerprint():
        raise SystemExit(f"{settings.out} must be of the same division, found another; delete it")


def _figures(judge: Judge, scores: Floats, rows: Any = None) -> Floats:
    """ALL_FIGURES of (N,) scores of the judge's table, or of some of its rows."""
    index = np.arange(len(scores)) if rows is None else np.asarray(rows)
    clean = index[judge.table["alteration"].to_numpy(np.int64)[index] < 0]
    auc = roc_auc(scores[clean], judge.table["target"].to_numpy(np.int64)[clean])
    return np.concatenate([[np.nan if auc is None else auc], judge.figures(scores, index)])


@contextmanager
def _no_figures() -> Iterator[None]:
    """They take a part of the time that a longer search would not notice."""
    with pytest.MonkeyPatch.context() as patch:
        blank(patch.setattr)
        yield


if __name__ == "__main__":
    run(main)
