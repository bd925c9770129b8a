"""Which image comes when and in which view: pure functions of a seed and an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch.utils.data import Sampler

Integers = NDArray[np.int64]
Draw = tuple[int, int]
"""Row of the table, view seed."""

_ORDER, _VIEW = 0, 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def view_seed(seed: int, epoch: int, index: int, repeat: int = 0) -> int:
    """The seed that `images.view` makes one image's view of one epoch from, in [0, 2**63).

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


class Plan(Sampler[list[Draw]]):
    """The batches of one epoch after another.

    Rows that are left out leave gaps: the others stay in their batches, as if the image had been
    found broken only when it was read.

    Attributes:
        epoch: what the next iteration is planned for.
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
            smallest_batch: batches with fewer are skipped.
            drop_last: drop an incomplete last batch, unless it is the only one.
        """
        self.draw = draw
        self.rows = rows
        self.batch_size = batch_size
        self.smallest_batch = smallest_batch
        self.drop_last = drop_last
        self.epoch = 0
        self.left_out: set[int] = set()

    def __len__(self) -> int:
        full, rest = divmod(self.rows, self.batch_size)
        return full + (rest > 0 and not (self.drop_last and full > 0))

    def __iter__(self) -> Iterator[list[Draw]]:
        indices, seeds = self.draw(self.epoch)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            part = slice(start, start + self.batch_size)
            draws = zip(indices[part].tolist(), seeds[part].tolist(), strict=True)
            batch = [draw for draw in draws if draw[0] not in self.left_out]
            if len(batch) >= self.smallest_batch:
                yield batch


def _entropy(seed: int, epoch: int, purpose: int) -> np.random.SeedSequence:
    # Words of fixed width: NumPy takes (5, 0) and (5,) for the same entropy.
    bits = seed % 2**64
    return np.random.SeedSequence((bits % 2**32, bits // 2**32, epoch, purpose))


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (doi:10.1145/2660193.2660195): a bijection."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
