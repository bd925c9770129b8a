"""Scores of altered images: every image is decoded once, for all of its alterations."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset

from search.machine.device import Runtime
from search.pixels.altering import Alteration
from search.pixels.canvas import to_canvas
from search.pixels.images import BrokenImage, read_image
from search.pixels.loading.batches import Batch
from search.pixels.loading.workers import PREFETCHED, as_it_is, start_worker
from search.pixels.quarantine import Quarantine
from search.training.scoring import SCORING_BATCH, predict

Floats = NDArray[np.float64]
Levels = NDArray[np.uint8]


def score_altered(
    network: nn.Module,
    table: pd.DataFrame,
    alterations: Sequence[Alteration],
    runtime: Runtime,
    *,
    quarantine: Quarantine | None = None,
    on_batch: Callable[[], None] = lambda: None,
    on_image: Callable[[int], None] = lambda _: None,
) -> Floats:
    """Scores every image of a table under each of some alterations.

    Args:
        network: maps canvases, RGB in [0, 1], to logits (N, 2), and has their side as `canvas`.
        table: has the columns img_name, path and target.
        alterations: K of them.
        runtime: where to compute, and how many processes decode and alter.
        quarantine: its images are left out, and it is told of further broken ones.
        on_batch: called after every batch; what it raises ends the scoring.
        on_image: told how many images have been read.

    Returns:
        Probabilities of fake, (K, N); NaN for images that cannot be read.

    Raises:
        UserError: if more images are broken than the quarantine allows.
        FloatingPointError: if a score is not finite.
    """
    quarantine = Quarantine(None, 1.0) if quarantine is None else quarantine
    quarantine.check(table)
    left_out = table["path"].isin(quarantine.paths).to_numpy()
    rows = np.flatnonzero(~left_out)
    side: Any = network.canvas
    images = AlteredImages(table.iloc[rows], side, alterations)
    scores = np.full((len(alterations), len(table)), np.nan)

    def canvases() -> Iterator[tuple[int, Levels]]:
        with closing(_read(images, runtime.workers)) as answers:
            for done, (row, answer) in enumerate(zip(rows.tolist(), answers, strict=True), 1):
                if isinstance(answer, str):
                    found = table.iloc[row]
                    quarantine.add(found["img_name"], found["path"], answer)
                    quarantine.check(table)
                else:
                    yield row, answer
                on_image(done)

    with closing(_batches(canvases(), table["target"].tolist(), len(alterations))) as batches:
        found = predict(network, batches, runtime, on_batch)
    row, alteration = np.divmod(found.indices, len(alterations))
    scores[alteration, row] = found.scores
    return scores


class AlteredImages(Dataset[Levels | str]):
    """The canvases of each image of a table under K alterations, uint8 (K, 3, C, C); or why the
    image cannot be read.

    As arrays, which travel from workers through a pipe: at a hundredth of what altering takes, and
    without shared memory.
    """

    def __init__(self, table: pd.DataFrame, side: int, alterations: Sequence[Alteration]) -> None:
        """
        Args:
            table: has the columns img_name and path.
            side: of the canvases, in pixels.
            alterations: K of them.
        """
        self.names, self.paths = table["img_name"].tolist(), table["path"].tolist()
        self.side, self.alterations = side, tuple(alterations)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Levels | str:
        try:
            image = read_image(self.paths[index])
        except BrokenImage as error:
            return str(error)
        canvases = np.empty((len(self.alterations), 3, self.side, self.side), np.uint8)
        for canvas, alteration in zip(canvases, self.alterations, strict=True):
            altered = alteration.apply(image, self.names[index])
            canvas[:] = to_canvas(altered, self.side).numpy()
        return canvases


def _read(images: AlteredImages, workers: int) -> Generator[Levels | str, None, None]:
    """All of them in their order, so many read ahead as workers have room for."""
    if not workers:
        yield from (images[index] for index in range(len(images)))
        return
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_size=None,
        collate_fn=as_it_is,
        num_workers=workers,
        prefetch_factor=PREFETCHED,
        worker_init_fn=start_worker,
        # Its own: seeding workers would advance the global generator.
        generator=torch.Generator(),
    )
    answers: Any = iter(loader)
    try:
        yield from answers
    finally:
        # At once: as a part of a traceback they would be waited for.
        answers._shutdown_workers()


def _batches(
    images: Iterator[tuple[int, Levels]], targets: Sequence[int], count: int
) -> Generator[Batch, None, None]:
    """Batches of whole images, each with all of its alterations; the index of a canvas is its
    image's row times `count`, plus the number of its alteration."""
    most = max(1, SCORING_BATCH // count)
    waiting: list[tuple[int, Levels]] = []
    for image in images:
        waiting.append(image)
        if len(waiting) == most:
            yield _batch(waiting, targets, count)
            waiting = []
    if waiting:
        yield _batch(waiting, targets, count)


def _batch(images: Sequence[tuple[int, Levels]], targets: Sequence[int], count: int) -> Batch:
    rows = torch.tensor([row for row, _ in images])
    indices = (rows[:, None] * count + torch.arange(count)).flatten()
    own = torch.tensor([targets[row] for row, _ in images])
    return Batch(
        canvases=torch.from_numpy(np.concatenate([canvases for _, canvases in images])),
        targets=own.repeat_interleave(count),
        indices=indices,
        seeds=torch.zeros_like(indices),
    )
