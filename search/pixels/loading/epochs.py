"""Label tables -> batches: which images come when, in which view.

That depends on the seed and the epoch alone, not on the number of worker processes, nor on when a
broken image was found.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.errors import UserError
from search.pixels.augmentation.augment import Augmentation
from search.pixels.loading.batches import NO_TARGET, Batch
from search.pixels.loading.pairing import Partners, side_by_side
from search.pixels.loading.reading import Reader
from search.pixels.loading.workers import Broken, Partner, Request
from search.pixels.quarantine import BrokenFile

Integers = NDArray[np.int64]
Draw = tuple[int, int]
"""Row of the table, view seed; a negative seed shows a real as a self-blended fake."""

BatchOrder = Literal["random", "groups"]
"""groups: both classes of a group in one batch, see `search.pixels.loading.pairing`."""

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


def self_blended(seeds: Integers, targets: Integers, share: float) -> Integers:
    """View seeds, those of a random share of the reals complemented, so that they are shown as
    self-blended fakes (arXiv:2204.08376); which ones, each seed decides for itself.

    Args:
        seeds: (N,), not negative.
        targets: (N,), 1 = fake.
        share: of the reals, in [0, 1).
    """
    # The 53 bits that a float64 holds.
    drawn = (_mix(seeds.astype(np.uint64) + _GOLDEN) >> np.uint64(11)) / 2.0**53
    return np.where((targets == 0) & (drawn < share), ~seeds, seeds)


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


FAKE = 1

SMALLEST_TRAINING_BATCH = 2
"""Batch norm and mixup need two images."""


@dataclass(frozen=True)
class _Source:
    """A table's columns. It knows no reader: the workers' iterator holds it, and the workers of a
    reader that were part of a cycle would be left to the garbage collector."""

    paths: list[str]
    targets: list[int]
    rows: list[int]
    augmentation: Augmentation | None
    partners: Partners | None = None
    sizes: tuple[int, ...] = ()

    def request(self, draws: list[Draw], left_out: Collection[int] = ()) -> Request:
        """For one batch; rows that are left out are mixed into none."""
        indices = [index for index, _ in draws]
        return Request(
            paths=[self.paths[index] for index in indices],
            targets=[FAKE if seed < 0 else self.targets[index] for index, seed in draws],
            indices=indices,
            seeds=[seed for _, seed in draws],
            rows=[self.rows[index] for index in indices],
            augmentation=self.augmentation,
            sizes=self.sizes,
            partners={
                place: Partner(self.paths[real], real, self.rows[real])
                for place, real in self._mixed_in(draws)
                if real not in left_out
            },
        )

    def _mixed_in(self, draws: list[Draw]) -> Iterator[tuple[int, int]]:
        """Places of a batch whose fake is mixed with a real, and the real's row of the table."""
        if self.partners is None:
            return
        for place, (row, seed) in enumerate(draws):
            real = self.partners.find(row, seed)
            if real is not None:
                yield place, real


class Loader:
    """Batches of one table, as often as they are asked for.

    An image that cannot be read is dropped from its batch, handed to the quarantine and not read
    again. The other images stay where they were, so training does not depend on whether the image
    was known to be broken before.
    """

    def __init__(
        self,
        reader: Reader,
        table: pd.DataFrame,
        plan: BatchPlan,
        augmentation: Augmentation | None = None,
        partners: Partners | None = None,
    ) -> None:
        """
        Args:
            reader: reads them.
            table: has the columns img_name and path, and target unless it is unlabelled.
            plan: which rows come when.
            augmentation: of the views; None leaves images as they are.
            partners: reals that fakes of the table are mixed with; None mixes none.
        """
        self.table = table
        self._reader, self._plan = reader, plan
        paths: list[str] = table["path"].tolist()
        self._source = _Source(
            paths=paths,
            targets=table["target"].tolist() if "target" in table else [NO_TARGET] * len(table),
            rows=[-1] * len(table) if reader.cache is None else reader.cache.locate(paths),
            augmentation=augmentation,
            partners=partners,
        )

    def __len__(self) -> int:
        """Number of batches of an epoch; broken images may leave fewer."""
        return len(self._plan)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the views of the iterations from now on."""
        self._plan.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch; raises as `numbered`."""
        return (batch for _, batch in self.numbered())

    def numbered(self, start: int = 0, sizes: Collection[int] = ()) -> Iterator[tuple[int, Batch]]:
        """The batches of the epoch with their numbers, which a batch that broken images leave too
        small keeps to itself.

        Args:
            start: number of the first one, from 0: those before it are not even read.
            sizes: at which the batches will be shown, and at no others.

        Raises:
            UserError: if more images are broken than the quarantine allows, no batch is left, or
                there is too little shared memory for the workers.
        """
        quarantine = self._reader.quarantine
        quarantine.check(self.table)
        known = self.table["path"].isin(quarantine.paths)
        self._plan.left_out = set(np.flatnonzero(known).tolist())
        self._plan.start = start
        delivered = start
        source = self._source
        if sizes and self._reader.renders:
            source = replace(source, sizes=tuple(sizes))
        # It holds the plan alone, to whose set images are added that are found broken on the way.
        plan = self._plan
        requests = (source.request(draws, plan.left_out) for draws in plan)
        for number, read in enumerate(self._reader.read(requests), start):
            if read.broken:
                self._set_aside(read.broken)
            if read.batch is not None and len(read.batch.targets) >= self._plan.smallest_batch:
                delivered += 1
                yield number, read.batch
        if not delivered:
            broken = quarantine.among(self.table)
            example = f", for example {broken[0].path} ({broken[0].reason})" if broken else ""
            raise UserError(
                f"a set must leave a batch of {self._plan.smallest_batch} images or more, found "
                f"{len(broken)} of {len(self.table)} images to be broken{example}"
            )

    def _set_aside(self, broken: list[Broken]) -> None:
        rows = self.table.iloc[[image.index for image in broken]]
        self._reader.quarantine.add_all(
            BrokenFile(name, path, image.reason)
            for name, path, image in zip(rows["img_name"], rows["path"], broken, strict=True)
        )
        self._plan.left_out.update(image.index for image in broken)
        self._reader.quarantine.check(self.table)


def train_batches(
    reader: Reader,
    table: pd.DataFrame,
    augmentation: Augmentation | None,
    *,
    batch_size: int,
    seed: int,
    balance: bool = False,
    batch_order: BatchOrder = "random",
    blended: float = 0.0,
    mixed: float = 0.0,
) -> Loader:
    """Images in random order and new views, different in every epoch.

    The last batch is dropped if it is incomplete, unless it is the only one. A batch that broken
    images leave with fewer than two is skipped.

    Args:
        reader: reads them.
        table: label table.
        augmentation: of the views; None leaves images as they are.
        batch_size: images of a batch.
        seed: with the epoch, decides the order and the views.
        balance: draw with replacement, so that real and fake images are equally likely.
        batch_order: see there.
        blended: share of the reals that are shown as self-blended fakes, their targets 1; it needs
            an augmentation, which makes them.
        mixed: share of the fakes that are shown mixed with a real of their group, before anything
            else is done to them; those whose group has none, or whose real is broken, stay as they
            are. See `Partners` and `search.pixels.augmentation.blending`.

    Raises:
        UserError: if the batch size is below two, all reals would be blended, or what is mixed is
            no share.
    """
    if batch_size < SMALLEST_TRAINING_BATCH:
        raise UserError(
            f"batch size must be at least {SMALLEST_TRAINING_BATCH}, found {batch_size}"
        )
    if not 0.0 <= blended < 1.0:
        raise UserError(
            f"the share of reals that are blended must be from 0 to less than 1, found {blended}"
        )
    if not 0.0 <= mixed <= 1.0:
        raise UserError(f"the share of fakes that are mixed must be from 0 to 1, found {mixed}")
    assert not blended or augmentation is not None
    targets = table["target"].to_numpy()
    needs_groups = batch_order == "groups" or mixed > 0
    groups = pd.factorize(table["group"])[0] if needs_groups else np.empty(0, np.int64)

    def draw(epoch: int) -> tuple[Integers, Integers]:
        order = balanced(targets, seed, epoch) if balance else shuffled(len(table), seed, epoch)
        if batch_order == "groups":
            order = side_by_side(order, groups, targets, batch_size)
        rows, seeds = with_views(order, seed, epoch)
        return rows, self_blended(seeds, targets[rows], blended) if blended else seeds

    plan = BatchPlan(
        draw,
        len(table),
        batch_size=batch_size,
        smallest_batch=SMALLEST_TRAINING_BATCH,
        drop_last=True,
    )
    partners = Partners.of(groups, targets, mixed) if mixed else None
    return Loader(reader, table, plan, augmentation, partners)


def eval_batches(reader: Reader, table: pd.DataFrame, *, batch_size: int) -> Loader:
    """All images in the table's order, as they are; view seeds are 0.

    Args:
        reader: reads them.
        table: label table, or the table of an unlabelled list, whose targets are NO_TARGET.
        batch_size: images of a batch.
    """
    rows = np.arange(len(table))
    plan = BatchPlan(
        lambda _epoch: (rows, np.zeros_like(rows)),
        len(table),
        batch_size=batch_size,
        smallest_batch=1,
        drop_last=False,
    )
    return Loader(reader, table, plan)
