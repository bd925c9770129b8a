"""A model and a table of images -> scores, with a progress display."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from search.data.batches import Batch
from search.data.quarantine import BrokenFile, Quarantine
from search.data.reading import Loader, Reader, eval_batches
from search.errors import UserError
from search.training.device import Runtime, default_workers, resolve_device
from search.training.network import margin
from search.training.progress import Bar, Bars
from search.training.scoring import predict


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
) -> Scored:
    """Scores every image of a table that can be read.

    Args:
        model: maps canvases, RGB in [0, 1], to logits (N, 2), and has their side as `canvas`.
        table: has the columns img_name and path.
        runtime: where to compute, and how many processes decode.
        console: shows the progress: a bar on a terminal, a few lines elsewhere.
        batch_size: images of one forward pass.
        flip: average with the mirror image, see `FlipAverage`.

    Raises:
        UserError: if no image can be read.
        FloatingPointError: if a score is not finite.
    """
    quarantine = Quarantine(None, limit_fraction=1.0)
    network = FlipAverage(model) if flip else model
    try:
        with (
            Reader(
                model.canvas,
                workers=runtime.workers,
                quarantine=quarantine,
                pin_memory=runtime.on_cuda,
            ) as reader,
            Bars(console, time_left=True, transient=True) as bars,
        ):
            loader = eval_batches(reader, table, batch_size=batch_size)
            bar = bars.add("scoring", len(table), unit="images", plain="scored")
            counted: Any = _Counted(loader, bar)
            predictions = predict(network, counted, runtime)
    except UserError:
        broken = quarantine.among(table)
        if len(broken) < len(table):
            raise
        raise UserError(
            f"an image must be readable, found {len(broken)} that are not, for example "
            f"{broken[0].path} ({broken[0].reason}); a list of images is named .txt, .csv or .tsv"
        ) from None
    rows = table[["img_name", "path"]].iloc[predictions.indices]
    scores: NDArray[Any] = predictions.scores
    return Scored(
        table=rows.assign(y_pred=scores).reset_index(drop=True),
        broken=tuple(quarantine.among(table)),
    )


class _Counted:
    """A loader that tells how many rows of its table it has come to."""

    def __init__(self, loader: Loader, bar: Bar) -> None:
        self.loader, self.bar = loader, bar

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            yield batch
            self.bar.update(int(batch.indices[-1]) + 1)
