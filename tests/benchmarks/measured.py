"""Recipes trained with forgery methods held out, and what they are worth on report: for benchmarks
that ask what helps on methods that training has not shown."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from search.data.splits import Splits
from search.machine.device import Runtime, resolve_device
from search.machine.files import write_atomically
from search.pixels.altered import altered_part
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.settings.search import SearchSettings
from search.training.candidate import Candidate
from search.training.metrics import mean_auc_of_alterations, split_by_novelty
from search.training.recipe import Recipe
from search.training.scoring import SCORING_BATCH, evaluate, with_altered
from search.training.train import train
from tests.benchmarks.opening import opened_images

Floats = NDArray[np.float64]

FIGURES = ("auc_seen", "auc_unseen", "auc_stress")
"""On report: fakes of methods that fit has, of methods that it lacks, and altered images."""

IMAGE_SIZE = 64
"""In pixels."""

MEASURED = "measured.csv"
"""In a candidate's folder: y_pred of each row of `Judge.table`."""


@dataclass(frozen=True, eq=False)
class Judge:
    """The images of a division by methods, select and report altered as well."""

    splits: Splits
    reader: Reader
    table: pd.DataFrame  # report, and after it some of its images altered

    @classmethod
    def of(cls, splits: Splits, reader: Reader, seed: int, folder: Path) -> Judge:
        """With altered images of both, which are kept in a folder."""
        select, report = (
            altered_part(part, reader.side, folder / f"altered-{name}-{seed}", seed=seed)
            for name, part in (("select", splits.select), ("report", splits.report))
        )
        table = with_altered(splits.report, report).reset_index(drop=True)
        return cls(replace(splits, altered=select), reader, table)

    def candidate(self, recipe: Recipe, folder: Path) -> Candidate:
        """Trains a recipe to its end in a folder, and scores it on `table`; what is there already
        is not done again."""
        runtime = Runtime(resolve_device("cpu"))
        candidate = train(recipe, self.splits, folder, runtime=runtime, reader=self.reader)
        path = folder / MEASURED
        if not path.exists():
            loader = eval_batches(self.reader, self.table, batch_size=SCORING_BATCH)
            found = evaluate(candidate.load(), loader, runtime, table=self.table).predictions
            scores = np.full(len(self.table), np.nan)
            scores[found.indices] = found.scores
            rows = pd.DataFrame({"y_pred": scores})
            write_atomically(path, lambda temporary: rows.to_csv(temporary, index=False))
        return candidate

    def figures(self, scores: Floats, rows: NDArray[np.int64] | None = None) -> Floats:
        """FIGURES of (N,) scores of `table`, or of some of its rows; NaN where a class is absent.

        Args:
            scores: (N,).
            rows: which count, some of them more than once.
        """
        rows = np.arange(len(scores)) if rows is None else rows
        table = self.table.iloc[rows]
        drawn, targets = scores[rows], table["target"].to_numpy(np.int64)
        alterations = table["alteration"].to_numpy(np.int64)
        clean = alterations < 0
        unseen = table["unseen"].to_numpy(np.bool_)
        seen, new = split_by_novelty(drawn[clean], targets[clean], unseen[clean])
        stress = mean_auc_of_alterations(drawn, targets, alterations)
        return np.array([np.nan if f is None else f for f in (seen, new, stress)])


def divisions(
    settings: SearchSettings, seeds: int, folder: Path
) -> Iterator[tuple[int, SearchSettings, Judge]]:
    """Divisions by methods, each seed its own; one is open at a time.

    Args:
        settings: of the images; methods are held out whatever they say. Their image size is
            IMAGE_SIZE, unless they say another.
        seeds: how many.
        folder: keeps the altered images.
    """
    for seed in range(seeds):
        size = settings.image_size or IMAGE_SIZE
        own = replace(settings, split="unseen", seed=seed, image_size=size).resolved()
        with opened_images(own, [size]) as (splits, reader):
            yield seed, own, Judge.of(splits, reader, seed, folder)


@contextmanager
def kept_in(folder: Path | None) -> Iterator[Path]:
    """A folder, or one that is gone afterwards."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def scores_of(candidate: Candidate) -> Floats:
    """Of the rows of `Judge.table`."""
    scores: Floats = pd.read_csv(candidate.path / MEASURED)["y_pred"].to_numpy(np.float64)
    return scores


def use_one_thread() -> None:
    """Small networks gain nothing by more."""
    torch.set_num_threads(1)
