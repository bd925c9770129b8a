"""Which images come when, in which view: plans that depend on the seed and the epoch alone, not on
the number of worker processes, nor on when a broken image was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from search.pixels.augment import Augmentation, render

Integers = NDArray[np.int64]
Draw = tuple[int, int]
"""Row of the table, view seed."""

_ORDER, _VIEW = 0, 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def view_seed(seed: int, epoch: int, index: int, repeat: int = 0) -> int:
    """The seed that one image's view of one epoch is made from, in [0, 2**63).

    Whoever knows it can make the same view again: a teacher scores exactly what its student sees.

    Args:
        seed: of the training run, any integer.
        epoch: from 0.
        index: the image's row in its table.
        repeat: how often the image came earlier in the epoch; only balanced draws repeat.
    """
    return int(view_seeds(seed, epoch, np.array([index]), np.array([repeat]))[0])


def view_seeds(seed: int, epoch: int, indices: Integers, repeats: Integers) -> Integers:
    """`view_seed` of many images at once, shape (N,)."""
    state = _entropy(seed, epoch, _VIEW).generate_state(1, np.uint64)
    state = _mix(state + _GOLDEN * indices.astype(np.uint64))
    state = _mix(state + _GOLDEN * repeats.astype(np.uint64))
    return (state >> np.uint64(1)).astype(np.int64)


def shuffled(rows: int, seed: int, epoch: int) -> Integers:
    """All rows in random order, shape (rows,)."""
    return np.random.default_rng(_entropy(seed, epoch, _ORDER)).permutation(rows)


def balanced(targets: Integers, seed: int, epoch: int) -> Integers:
    """As many rows as there are, drawn with replacement, each class as likely as the other."""
    weights = 1.0 / np.bincount(targets)[targets]
    generator = np.random.default_rng(_entropy(seed, epoch, _ORDER))
    return generator.choice(len(targets), size=len(targets), p=weights / weights.sum())


def with_views(indices: Integers, seed: int, epoch: int) -> tuple[Integers, Integers]:
    """Rows in their order of drawing, and the view seed of each, both (N,)."""
    repeats = pd.Series(indices).groupby(indices).cumcount().to_numpy().astype(np.int64)
    return indices, view_seeds(seed, epoch, indices, repeats)


class BatchPlan:
    """The batches of one epoch after another.

    Rows that are left out leave gaps: the others stay in their batches, as if the image had been
    found broken only when it was read.

    Attributes:
        epoch: what the next iteration is planned for.
        start: batches of the epoch that the next iteration leaves out, because they were seen.
        left_out: rows that are not to be read.
    """

    def __init__(
        self,
        draw: Callable[[int], tuple[Integers, Integers]],
        rows: int,
        *,
        batch_size: int,
        smallest_batch: int,
        drop_last: bool,
    ) -> None:
        """
        Args:
            draw: maps an epoch to `rows` rows and their view seeds.
            rows: how many there are.
            batch_size: rows of a full batch.
            smallest_batch: a batch left with fewer is not used.
            drop_last: drop an incomplete last batch, unless it is the only one.
        """
        self.draw = draw
        self.rows = rows
        self.batch_size = batch_size
        self.smallest_batch = smallest_batch
        self.drop_last = drop_last
        self.epoch = self.start = 0
        self.left_out: set[int] = set()

    def __len__(self) -> int:
        full, rest = divmod(self.rows, self.batch_size)
        return full + (rest > 0 and not (self.drop_last and full > 0))

    def __iter__(self) -> Iterator[list[Draw]]:
        """One list a batch, empty where all its rows are left out, so that a batch can be told by
        its number."""
        indices, seeds = self.draw(self.epoch)
        for number in range(self.start, len(self)):
            part = slice(number * self.batch_size, (number + 1) * self.batch_size)
            draws = zip(indices[part].tolist(), seeds[part].tolist(), strict=True)
            yield [draw for draw in draws if draw[0] not in self.left_out]


def _entropy(seed: int, epoch: int, purpose: int) -> np.random.SeedSequence:
    # Words of fixed width: NumPy takes (5, 0) and (5,) for the same entropy.
    bits = seed % 2**64
    return np.random.SeedSequence((bits % 2**32, bits // 2**32, epoch, purpose))


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (doi:10.1145/2660193.2660195): a bijection."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


NO_TARGET = -1
"""Target of the images of an unlabelled list."""

Images = Tensor | dict[int, Tensor]
"""What networks see of a batch: squares (N, 3, S, S), or those of several sizes S by S."""


@dataclass(frozen=True)
class Batch:
    """Canvases of one batch and where they come from; broken images are left out."""

    canvases: Tensor  # (N, 3, C, C) - uint8, prepared by `augmentation`
    targets: Tensor  # (N,) - int64, 1 = fake
    indices: Tensor  # (N,) - int64, rows of the table
    seeds: Tensor  # (N,) - int64, of the views
    augmentation: Augmentation | None = None  # None: images as they are

    def show(self, sizes: Iterable[int]) -> dict[int, Tensor]:
        """The views at some sizes, uint8 (N, 3, S, S) by S: the same views, each resampled once
        from the canvas, on the device that it is on."""
        return {size: render(self.canvases, self.seeds, self.augmentation, size) for size in sizes}

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where a GPU fetches it without being waited for."""
        return Batch(
            canvases=self.canvases.pin_memory(),
            targets=self.targets.pin_memory(),
            indices=self.indices.pin_memory(),
            seeds=self.seeds.pin_memory(),
            augmentation=self.augmentation,
        )


@dataclass(frozen=True)
class Shown:
    """A batch as networks see it: floats in [0, 1] on their device."""

    images: Images
    targets: Tensor  # (N,) - int64, 1 = fake; or shares of the classes (N, 2)
    indices: Tensor  # (N,) - int64, rows of the table
    seeds: Tensor  # (N,) - int64, of the views

    def split(self, count: int) -> Iterator[Shown]:
        """So many parts of nearly equal size."""
        targets = self.targets.tensor_split(count)
        images = split_images(self.images, [len(part) for part in targets])
        indices, seeds = (column.tensor_split(count) for column in (self.indices, self.seeds))
        for part in zip(images, targets, indices, seeds, strict=True):
            yield Shown(*part)


def count_images(images: Images) -> int:
    """N."""
    return len(images if isinstance(images, Tensor) else next(iter(images.values())))


def split_images(images: Images, size: int | list[int]) -> list[Images]:
    """Parts of so many images, or each of its own number."""
    if isinstance(images, Tensor):
        return list(images.split(size))
    parts = zip(*(pixels.split(size) for pixels in images.values()), strict=True)
    return [dict(zip(images, part, strict=True)) for part in parts]
