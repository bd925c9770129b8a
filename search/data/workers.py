"""What worker processes do: draws -> batches, with broken images told apart."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from search.data.draws import Draw
from search.data.images import BrokenImage, Transform, read_image, view

NO_TARGET = -1
"""Target of the images of an unlabelled list."""


@dataclass(frozen=True)
class Batch:
    """Images of one batch and where they come from; broken ones are left out."""

    images: Tensor  # (N, 3, S, S) - uint8
    targets: Tensor  # (N,) - int64, 1 = fake
    indices: Tensor  # (N,) - int64, rows of the table
    seeds: Tensor  # (N,) - int64, what `view` made each image from

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where a GPU fetches it without being waited for."""
        return Batch(
            images=self.images.pin_memory(),
            targets=self.targets.pin_memory(),
            indices=self.indices.pin_memory(),
            seeds=self.seeds.pin_memory(),
        )


@dataclass(frozen=True)
class Sample:
    """What a worker made of one draw."""

    index: int
    seed: int
    target: int
    image: Tensor | None  # (3, S, S) - uint8
    reason: str = ""  # why there is no image


@dataclass(frozen=True)
class Read:
    """What workers send back: the batch and the images that are missing from it."""

    batch: Batch | None
    broken: list[Sample]

    def pin_memory(self) -> Read:
        """Called by the DataLoader, which knows only of tensors otherwise."""
        return replace(self, batch=self.batch and self.batch.pin_memory())


class Images(Dataset[Sample]):
    """Reads and transforms one draw at a time; it holds no state, so workers need none."""

    def __init__(self, table: pd.DataFrame, transform: Transform) -> None:
        self.paths = table["path"].tolist()
        self.targets = (
            table["target"].to_numpy() if "target" in table else np.full(len(table), NO_TARGET)
        )
        self.transform = transform

    def __getitem__(self, draw: Draw) -> Sample:
        index, seed = draw
        target = int(self.targets[index])
        try:
            image = read_image(self.paths[index])
        except BrokenImage as error:
            return Sample(index, seed, target, None, str(error))
        return Sample(index, seed, target, view(image, self.transform, seed))


def collate(samples: list[Sample]) -> Read:
    """Stacks what could be read, in its order, and keeps apart what could not."""
    broken = [sample for sample in samples if sample.image is None]
    images = [sample.image for sample in samples if sample.image is not None]
    if not images:
        return Read(None, broken)
    rows = [(s.target, s.index, s.seed) for s in samples if s.image is not None]
    targets, indices, seeds = torch.tensor(rows, dtype=torch.int64).unbind(1)
    return Read(Batch(torch.stack(images), targets, indices, seeds), broken)


def start_worker(_worker: int) -> None:
    """Prepares a worker process: one thread, since there are as many workers as cores to use."""
    torch.set_num_threads(1)
    # Ctrl-C reaches workers too; the main process closes them, without their tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
