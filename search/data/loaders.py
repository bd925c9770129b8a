"""Label tables and transforms -> batches that depend on the seed and the epoch alone: not on the
number of worker processes, nor on when a broken image was found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from search.data.augment import eval_transform
from search.data.draws import Integers, Plan, balanced, shuffled, view_seed, with_views
from search.data.images import BrokenImage, Transform, read_image, view
from search.data.quarantine import BrokenFile, Quarantine
from search.data.workers import NO_TARGET, Batch, Images, Sample, collate, start_worker
from search.errors import UserError

__all__ = [
    "NO_TARGET",
    "Batch",
    "BrokenImage",
    "Loader",
    "eval_loader",
    "read_image",
    "train_loader",
    "view",
    "view_seed",
]

SMALLEST_TRAINING_BATCH = 2
"""Batch norm and mixup need two images."""


class Loader:
    """Batches of one table, as often as they are asked for.

    An image that cannot be read is dropped from its batch, handed to the quarantine and not read
    again. The other images stay where they were, so training does not depend on whether the image
    was known to be broken before.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        transform: Transform,
        plan: Plan,
        *,
        workers: int = 0,
        quarantine: Quarantine | None = None,
        pin_memory: bool = False,
    ) -> None:
        """
        Args:
            table: has the columns img_name and path, and target unless it is unlabelled.
            transform: maps an RGB image to a uint8 tensor (3, S, S).
            plan: which rows come when.
            workers: processes that decode images; 0 decodes in this one.
            quarantine: is told of broken images; None only leaves them out.
            pin_memory: deliver images in page-locked memory.
        """
        self.table = table
        self._plan = plan
        self._quarantine = Quarantine(None, 1.0) if quarantine is None else quarantine
        self._batches: DataLoader[Any] = DataLoader(
            Images(table, transform),
            batch_sampler=plan,
            collate_fn=collate,
            num_workers=workers,
            worker_init_fn=start_worker,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            # Its own: seeding workers would advance the global generator.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Number of batches of an epoch; broken images may leave fewer."""
        return len(self._plan)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the views of the iterations from now on."""
        self._plan.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch.

        Raises:
            UserError: if more images are broken than the quarantine allows, or no batch is left.
        """
        self._quarantine.check(self.table)
        known = self.table["path"].isin(self._quarantine.paths)
        self._plan.left_out = set(np.flatnonzero(known).tolist())
        delivered = 0
        for read in self._batches:
            if read.broken:
                self._set_aside(read.broken)
            if read.batch is not None and len(read.batch.targets) >= self._plan.smallest_batch:
                delivered += 1
                yield read.batch
        if not delivered:
            broken = self._quarantine.among(self.table)
            example = f", for example {broken[0].path} ({broken[0].reason})" if broken else ""
            raise UserError(
                f"a set must leave a batch of {self._plan.smallest_batch} images or more, found "
                f"{len(broken)} of {len(self.table)} images to be broken{example}"
            )

    def _set_aside(self, broken: list[Sample]) -> None:
        rows = self.table.iloc[[sample.index for sample in broken]]
        self._quarantine.add_all(
            BrokenFile(name, path, sample.reason)
            for name, path, sample in zip(rows["img_name"], rows["path"], broken, strict=True)
        )
        self._plan.left_out.update(sample.index for sample in broken)
        self._quarantine.check(self.table)


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
    """Augmented images in random order, different in every epoch.

    The last batch is dropped if it is incomplete, unless it is the only one. A batch that broken
    images leave with fewer than two is skipped.

    Args:
        table: label table.
        transform: see `augment.train_transform`.
        batch_size: images of a batch.
        seed: with the epoch, decides the order and the views.
        balance: draw with replacement, so that real and fake images are equally likely.
        workers, quarantine, pin_memory: see `Loader`.

    Raises:
        UserError: if the batch size is below two.
    """
    if batch_size < SMALLEST_TRAINING_BATCH:
        raise UserError(
            f"batch size must be at least {SMALLEST_TRAINING_BATCH}, found {batch_size}"
        )
    targets = table["target"].to_numpy()

    def draw(epoch: int) -> tuple[Integers, Integers]:
        order = balanced(targets, seed, epoch) if balance else shuffled(len(table), seed, epoch)
        return with_views(order, seed, epoch)

    plan = Plan(
        draw,
        len(table),
        batch_size=batch_size,
        smallest_batch=SMALLEST_TRAINING_BATCH,
        drop_last=True,
    )
    return Loader(
        table,
        transform,
        plan,
        workers=workers,
        quarantine=quarantine,
        pin_memory=pin_memory,
    )


def eval_loader(
    table: pd.DataFrame,
    image_size: int,
    *,
    batch_size: int,
    workers: int = 0,
    quarantine: Quarantine | None = None,
    pin_memory: bool = False,
) -> Loader:
    """All images in the table's order, resized and otherwise as they are; view seeds are 0.

    Args:
        table: label table, or the table of an unlabelled list, whose targets are NO_TARGET.
        image_size: side of the images, in pixels.
        batch_size: images of a batch.
        workers, quarantine, pin_memory: see `Loader`.
    """
    rows = np.arange(len(table))
    plan = Plan(
        lambda _epoch: (rows, np.zeros_like(rows)),
        len(table),
        batch_size=batch_size,
        smallest_batch=1,
        drop_last=False,
    )
    return Loader(
        table,
        eval_transform(image_size),
        plan,
        workers=workers,
        quarantine=quarantine,
        pin_memory=pin_memory,
    )
