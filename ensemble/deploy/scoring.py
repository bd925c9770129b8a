"""A model and a table of images -> scores, with a progress display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from ensemble.deploy.journal import Journal
from search.errors import UserError
from search.machine.device import Precision, Runtime, default_workers, resolve_device
from search.machine.progress import Bars, tell_line
from search.pixels.loading.batches import Batch
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.pixels.quarantine import BrokenFile, Quarantine
from search.training.network import margin
from search.training.scoring import check_finite, predict_batches


@dataclass(frozen=True)
class Scored:
    """Scores of the images that could be read, and why the others could not."""

    table: pd.DataFrame  # img_name, path, y_pred (float64, probability of fake), in table order
    broken: tuple[BrokenFile, ...]


class FlipAverage(nn.Module):
    """A model asked twice, about an image and about its mirror image.

    Its margin is the mean of the two margins, so its odds are the geometric mean of theirs: unlike
    the mean of two probabilities, it treats 0.99 and 0.999 as apart. It is a second forward pass,
    which a submission may not use.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 2) of canvases, RGB in [0, 1]; the first column is 0."""
        both = margin(self.model(images)) + margin(self.model(images.flip(-1)))
        return torch.stack([torch.zeros_like(both), both / 2], dim=1)


def open_runtime(device: str, workers: int | None) -> Runtime:
    """Where to compute, and how many processes decode: by the machine, if None."""
    target = resolve_device(device)
    if workers is None:
        workers = default_workers(target)
    return Runtime(target, workers)


def score_images(
    model: Any,
    table: pd.DataFrame,
    *,
    runtime: Runtime,
    console: Console,
    batch_size: int = 32,
    flip: bool = False,
    precision: Precision = "fp32",
    journal: Journal | None = None,
) -> Scored:
    """Scores every image of a table that can be read.

    Args:
        model: maps canvases, RGB in [0, 1], to logits (N, 2), and has their side as `canvas`.
        table: has the columns img_name and path.
        runtime: where to compute, and how many processes decode.
        console: shows the progress: a bar on a terminal, a few lines elsewhere.
        batch_size: images of one forward pass.
        flip: average with the mirror image, see `FlipAverage`.
        precision: of the forward passes.
        journal: takes every batch as it comes, and has those that were scored before.

    Raises:
        UserError: if no image can be read.
        FloatingPointError: if a score is not finite.
    """
    quarantine = Quarantine(None, limit_fraction=1.0)
    network = FlipAverage(model) if flip else model
    scores = np.full(len(table), np.nan)
    known = {} if journal is None else journal.take_up(partial(tell_line, console))
    scores[list(known)] = list(known.values())
    # Whole batches: those that follow are then the ones that an unbroken scoring would see.
    begun = 0 if not known else max(known) // batch_size + 1
    again = np.flatnonzero(np.isnan(scores[: begun * batch_size]))
    if known:
        tell_line(console, f"{len(known):,} of {len(table):,} images were scored before: going on")

    def score(batches: Iterator[Batch], rows: NDArray[np.int64]) -> None:
        for found in predict_batches(network, batches, runtime, precision):
            check_finite(found.scores)
            taken = rows[found.indices]
            scores[taken] = found.scores
            if journal is not None:
                journal.add(taken.tolist(), found.scores.tolist())
            bar.update(max(int(taken[-1]) + 1, begun * batch_size))

    try:
        with (
            Reader.on(runtime, model.canvas, quarantine=quarantine) as reader,
            Bars(console, time_left=True, transient=True) as bars,
        ):
            load = partial(eval_batches, reader, batch_size=batch_size)
            bar = bars.add("scoring", len(table), unit="images", plain="scored")
            later = load(table).numbered(begun)
            score((batch for _, batch in later), np.arange(len(table)))
            if len(again):
                # Broken when their batch was scored, or changed since.
                with _all_may_be_broken(quarantine, table.iloc[again]):
                    score(iter(load(table.iloc[again])), again)
    except UserError:
        broken = quarantine.among(table)
        if len(broken) < len(table):
            raise
        raise UserError(
            f"an image must be readable, found {len(broken)} that are not, for example "
            f"{broken[0].path} ({broken[0].reason}); a list of images is named .txt, .csv or .tsv"
        ) from None
    is_scored = ~np.isnan(scores)
    rows = table.loc[is_scored, ["img_name", "path"]]
    return Scored(
        table=rows.assign(y_pred=scores[is_scored]).reset_index(drop=True),
        broken=tuple(quarantine.among(table)),
    )


@contextmanager
def _all_may_be_broken(quarantine: Quarantine, table: pd.DataFrame) -> Iterator[None]:
    """A loader refuses a set of which nothing is left; here it is a part of one."""
    try:
        yield
    except UserError:
        if len(quarantine.among(table)) < len(table):
            raise
