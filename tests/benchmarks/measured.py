"""Recipes trained with forgery methods held out, and what they are worth on report: for benchmarks
that ask what helps on methods that training has not shown."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console

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


RESAMPLINGS = 2_000


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
        kept_scores(folder / MEASURED, candidate, self.reader, self.table)
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


def kept_scores(path: Path, candidate: Candidate, reader: Reader, table: pd.DataFrame) -> Floats:
    """A candidate's scores (N,) of a table's images, NaN for those that cannot be read, from a file
    that is written if it is not there."""
    if not path.exists():
        loader = eval_batches(reader, table, batch_size=SCORING_BATCH)
        runtime = Runtime(resolve_device("cpu"))
        found = evaluate(candidate.load(), loader, runtime, table=table).predictions
        scores = np.full(len(table), np.nan)
        scores[found.indices] = found.scores
        rows = pd.DataFrame({"y_pred": scores})
        write_atomically(path, lambda temporary: rows.to_csv(temporary, index=False))
    kept: Floats = pd.read_csv(path)["y_pred"].to_numpy(np.float64)
    return kept


def differences(
    table: pd.DataFrame, drawn: Mapping[str, Sequence[Floats]], column: str, figures: Sequence[str]
) -> pd.DataFrame:
    """Means over the seeds of each arm's figures, and how they differ from those of the first arm,
    both with 95% intervals.

    Args:
        table: a row an arm and seed.
        drawn: of each arm, for each seed, the figures (resamplings, figures) of groups that were
            drawn again: the same ones for all arms.
        column: of the table, that names the arm.
        figures: columns of the table.
    """
    means, usual = table.groupby(column, sort=False)[list(figures)].mean(), next(iter(drawn))
    # Draws of one class alone are left out, by some seeds' divisions more than by others'.
    shortest = min(len(own) for of_seeds in drawn.values() for own in of_seeds)
    drawn_means = {
        name: np.mean([own[:shortest] for own in of_seeds], axis=0)
        for name, of_seeds in drawn.items()
    }
    told = []
    for name, of_seeds in drawn.items():
        row: dict[str, Any] = {column: name, "seeds": len(of_seeds)}
        mean = drawn_means[name]
        mean_low, mean_high = np.nanquantile(mean, (0.025, 0.975), axis=0)
        low, high = np.nanquantile(mean - drawn_means[usual], (0.025, 0.975), axis=0)
        for number, figure in enumerate(figures):
            row[figure] = means.loc[name, figure]
            row[f"{figure}_mean_low"], row[f"{figure}_mean_high"] = (
                mean_low[number],
                mean_high[number],
            )
            row[f"{figure}_difference"] = row[figure] - means.loc[usual, figure]
            row[f"{figure}_low"], row[f"{figure}_high"] = low[number], high[number]
        told.append(row)
    return pd.DataFrame(told)


def publish(
    table: pd.DataFrame,
    drawn: Mapping[str, Sequence[Floats]],
    column: str,
    figures: Sequence[str],
    output: Path | None,
) -> None:
    """Prints `differences`, whose arguments these are, and writes them beside the table."""
    compared = differences(table, drawn, column, figures)
    Console().print(compared.to_string(index=False), highlight=False, soft_wrap=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        table.round(5).to_csv(output, index=False)
        compared.round(5).to_csv(output.with_name(f"{output.stem}_differences.csv"), index=False)


def scores_of(candidate: Candidate) -> Floats:
    """Of the rows of `Judge.table`."""
    scores: Floats = pd.read_csv(candidate.path / MEASURED)["y_pred"].to_numpy(np.float64)
    return scores


def use_one_thread() -> None:
    """Small networks gain nothing by more."""
    torch.set_num_threads(1)


def resampled_groups(
    table: pd.DataFrame, resamplings: int = RESAMPLINGS
) -> Iterator[NDArray[np.int64]]:
    """Rows of as many groups as there are, drawn with replacement, so many times; draws of one
    class are left out."""
    generator = np.random.default_rng(0)
    groups, names = pd.factorize(table["group"])
    members = [np.flatnonzero(groups == number) for number in range(len(names))]
    targets = table["target"].to_numpy()
    for _ in range(resamplings):
        chosen = generator.integers(0, len(members), len(members))
        index = np.concatenate([members[number] for number in chosen])
        if 0 < targets[index].sum() < len(index):
            yield index
