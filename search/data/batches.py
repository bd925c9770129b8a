"""Label tables and transforms -> batches that depend on the seed and the epoch alone: not on the
number of worker processes, nor on when a broken image was found."""

from __future__ import annotations

import atexit
import errno
import shutil
import signal
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from search.data.augment import eval_transform
from search.data.images import BrokenImage, Transform, read_image, view
from search.data.quarantine import BrokenFile, Quarantine
from search.errors import UserError

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


class BatchPlan(Sampler[list[Draw]]):
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
    stacked, columns = torch.stack(images), torch.tensor(rows, dtype=torch.int64)
    if get_worker_info() is not None:
        # Done here, a lack of shared memory is reported; the queue's thread would lose the batch,
        # and the main process wait for it for ever (torch 2.15).
        stacked.share_memory_()
        columns.share_memory_()
    targets, indices, seeds = columns.unbind(1)
    return Read(Batch(stacked, targets, indices, seeds), broken)


GRACE_SECONDS = 30
"""A worker lives on for so long after SIGTERM."""


def start_worker(_worker: int) -> None:
    """Prepares a worker process: one thread, since there are as many workers as cores to use."""
    torch.set_num_threads(1)
    # Both may reach a whole group of processes: the main one saves, then closes its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.alarm(GRACE_SECONDS))


_LOADERS: weakref.WeakSet[DataLoader[Any]] = weakref.WeakSet()
"""Those that may have workers."""


@atexit.register
def _close_workers() -> None:
    """Lets workers end by themselves; multiprocessing, which comes next, would wait out their
    grace."""
    for loader in _LOADERS:
        _close_workers_of(loader)


def _close_workers_of(loader: DataLoader[Any]) -> None:
    iterator: Any = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None


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

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only its size is asked for


def _is_out_of_shared_memory(error: RuntimeError | OSError) -> bool:
    """Whether a worker could not share a batch, died of that, or could not even be started."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    # A worker's death is told by the signal's handler, which the DataLoader wraps.
    told = f"{error} {error.__cause__}"
    # The last is what torch calls a block of shared memory, whatever it could not do with it.
    return any(sign in told for sign in ("shared memory", "Bus error", "file </torch_"))


def _size_of_shared_memory() -> str:
    if not SHARED_MEMORY.is_dir():
        return ""
    return f" ({SHARED_MEMORY} has {shutil.disk_usage(SHARED_MEMORY).total / 2**20:,.0f} MB)"


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
        plan: BatchPlan,
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
        if workers:
            _LOADERS.add(self._batches)

    def __len__(self) -> int:
        """Number of batches of an epoch; broken images may leave fewer."""
        return len(self._plan)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the views of the iterations from now on."""
        self._plan.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch; raises as `numbered`."""
        return (batch for _, batch in self.numbered())

    def numbered(self, start: int = 0) -> Iterator[tuple[int, Batch]]:
        """The batches of the epoch with their numbers, which a batch that broken images leave too
        small keeps to itself.

        Args:
            start: number of the first one, from 0: those before it are not even read.

        Raises:
            UserError: if more images are broken than the quarantine allows, no batch is left, or
                there is too little shared memory for the workers.
        """
        self._quarantine.check(self.table)
        known = self.table["path"].isin(self._quarantine.paths)
        self._plan.left_out = set(np.flatnonzero(known).tolist())
        self._plan.start = start
        delivered = start
        for number, read in enumerate(self._read(), start):
            if read.broken:
                self._set_aside(read.broken)
            if read.batch is not None and len(read.batch.targets) >= self._plan.smallest_batch:
                delivered += 1
                yield number, read.batch
        if not delivered:
            broken = self._quarantine.among(self.table)
            example = f", for example {broken[0].path} ({broken[0].reason})" if broken else ""
            raise UserError(
                f"a set must leave a batch of {self._plan.smallest_batch} images or more, found "
                f"{len(broken)} of {len(self.table)} images to be broken{example}"
            )

    def _read(self) -> Iterator[Read]:
        try:
            yield from self._batches
        except (RuntimeError, OSError) as error:
            # What the error's traceback holds is collected as a cycle, in which the workers' queues
            # go first: the workers would be waited for in vain, 10 s each (torch 2.15).
            _close_workers_of(self._batches)
            if not _is_out_of_shared_memory(error):
                raise
            raise UserError(
                "worker processes need shared memory to hand over their batches, but it is used "
                f"up{_size_of_shared_memory()}; use --workers 0, or enlarge it (of a container: "
                "docker run --shm-size 4g)"
            ) from error

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

    plan = BatchPlan(
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
    plan = BatchPlan(
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
