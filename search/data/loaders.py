"""Label tables and transforms -> batches that depend on the seed and the epoch alone: not on the
number of worker processes, nor on when a broken image was found."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from search.data.augment import eval_transform
from search.data.images import BrokenImage, Transform, read_image, view
from search.data.quarantine import BrokenFile, Quarantine
from search.errors import UserError

__all__ = [
    "Batch",
    "BrokenImage",
    "Loader",
    "eval_loader",
    "read_image",
    "train_loader",
    "view",
    "view_seed",
    "view_seeds",
]

NO_TARGET = -1
"""Target of images from a list without labels."""

SMALLEST_TRAINING_BATCH = 2
"""Batch norm and mixup need two images."""

Integers = NDArray[np.int64]
Draw = tuple[int, int]  # row of the table, view seed


@dataclass(frozen=True)
class Batch:
    """Images of one batch and where they come from; broken ones are left out."""

    images: Tensor  # (N, 3, S, S) - uint8
    targets: Tensor  # (N,) - int64, 1 = fake, NO_TARGET = unknown
    indices: Tensor  # (N,) - int64, rows of the table
    seeds: Tensor  # (N,) - int64, what `view` made the images from

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; its images alone are worth a fast way to the GPU."""
        return replace(self, images=self.images.pin_memory())


class Loader:
    """Batches of one table, again and again.

    Images that cannot be read are dropped from their batch, handed to the quarantine, and not
    read again. The other images stay in the batches they were in, so what a network sees does not
    depend on whether an image was known to be broken.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        transform: Transform,
        plan: _Plan,
        *,
        workers: int,
        quarantine: Quarantine | None,
        pin_memory: bool,
    ) -> None:
        """See `train_loader` and `eval_loader`."""
        self.table = table
        self.quarantine = Quarantine(None, 1.0) if quarantine is None else quarantine
        self._plan = plan
        self._batches: DataLoader[_Read] = DataLoader(
            _Images(table, transform),  # type: ignore[arg-type]
            batch_sampler=plan,  # type: ignore[arg-type]
            collate_fn=_collate,
            num_workers=workers,
            worker_init_fn=_start_worker if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            # Its own generator: drawing the workers' seeds must not advance the global one.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Number of batches of an epoch; fewer come if all images of one are broken."""
        return len(self._plan)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the views of the next iteration."""
        self._plan.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        """
        Raises:
            UserError: if too many images are broken, or no batch is left.
        """
        self.quarantine.check(self.table)
        broken_paths = self.quarantine.paths
        known = self.table["path"].isin(broken_paths) if broken_paths else np.empty(0)
        self._plan.left_out = set(np.flatnonzero(known).tolist())
        delivered = 0
        for read in self._batches:
            if read.broken:
                self._set_aside(read.broken)
            if read.batch is not None and len(read.batch.targets) >= self._plan.smallest_batch:
                delivered += 1
                yield read.batch
        if not delivered:
            raise UserError(
                f"at least {self._plan.smallest_batch} images of a set must be readable, found "
                f"{len(self.table) - len(self._plan.left_out)} of {len(self.table)}"
                + "".join(f"; {path}: {reason}" for path, reason in self._example())
            )

    def _set_aside(self, broken: Sequence[_Sample]) -> None:
        rows = self.table.iloc[[sample.index for sample in broken]]
        self.quarantine.add_all(
            BrokenFile(name, path, sample.reason)
            for name, path, sample in zip(rows["img_name"], rows["path"], broken, strict=True)
        )
        self._plan.left_out.update(sample.index for sample in broken)
        self.quarantine.check(self.table)


def train_loader(
    table: pd.DataFrame,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    balance: bool = False,
    workers: int = 0,
    quarantine: Quarantine | None = None,
    pin_memory: bool = False,
) -> Loader:
    """Shuffled batches of augmented images; order and views depend on (seed, epoch) alone.

    The last batch is dropped if it is incomplete, unless it is the only one. Batches that broken
    images leave with fewer than two are skipped.

    Args:
        table: label table.
        transform: see `augment.train_transform`.
        batch_size: images of a batch.
        seed: any integer.
        balance: draw as many images as the table has, with replacement, both classes with equal
            probability.
        workers: processes that decode images; 0 decodes in this one.
        quarantine: is told of broken images; None only leaves them out.
        pin_memory: deliver images in page-locked memory.

    Raises:
        UserError: if the batch size is too small.
    """
    if batch_size < SMALLEST_TRAINING_BATCH:
        raise UserError(
            f"batch size must be at least {SMALLEST_TRAINING_BATCH}, found {batch_size}"
        )
    draws = _BalancedDraws if balance else _ShuffledDraws
    ...
