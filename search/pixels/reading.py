"""Label tables -> batches of canvases: one pool of workers for a whole run, with cache and
quarantine."""

from __future__ import annotations

import atexit
import errno
import shutil
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from search.errors import UserError
from search.pixels.augment import Augmentation
from search.pixels.batches import (
    NO_TARGET,
    Batch,
    BatchPlan,
    Draw,
    Integers,
    balanced,
    shuffled,
    with_views,
)
from search.pixels.cache import CanvasCache, DamagedCacheError
from search.pixels.canvas import read_canvas
from search.pixels.images import BrokenImage
from search.pixels.quarantine import BrokenFile, Quarantine


@dataclass(frozen=True)
class Request:
    """A batch that is to be read: all that a worker must be told."""

    paths: list[str]
    targets: list[int]
    indices: list[int]  # rows of the table
    seeds: list[int]
    rows: list[int]  # of the cache; -1: not in it
    augmentation: Augmentation | None


@dataclass(frozen=True)
class Broken:
    """An image that could not be read."""

    index: int  # row of the table
    reason: str


@dataclass(frozen=True)
class Read:
    """What workers send back: the batch, the images that are missing from it, and what is wrong
    with the cache."""

    batch: Batch | None
    broken: list[Broken]
    cache_problem: str = ""

    def pin_memory(self) -> Read:
        """Called by the DataLoader, which knows only of tensors otherwise."""
        return replace(self, batch=self.batch and self.batch.pin_memory())


class Canvases(Dataset[Read]):
    """Gathers the canvases of a request, from the cache or from the image files."""

    def __init__(self, side: int, cache: CanvasCache | None) -> None:
        self.side, self.cache = side, cache

    def __getitem__(self, request: Request) -> Read:
        if not request.paths:
            return Read(None, [])
        canvases = torch.empty(len(request.paths), 3, self.side, self.side, dtype=torch.uint8)
        columns = torch.empty(3, len(request.paths), dtype=torch.int64)
        if get_worker_info() is not None:
            # Done here, a lack of shared memory is reported; the queue's thread would lose the
            # batch, and the main process wait for it for ever (torch 2.15).
            canvases.share_memory_()
            columns.share_memory_()
        count, broken, problem = 0, [], ""
        for path, target, index, seed, row in zip(
            *(request.paths, request.targets, request.indices, request.seeds, request.rows),
            strict=True,
        ):
            try:
                problem = self._fetch(path, row, canvases[count]) or problem
            except BrokenImage as error:
                broken.append(Broken(index, str(error)))
                continue
            if request.augmentation is not None:
                prepared = request.augmentation.prepare(canvases[count], seed)
                if prepared is not canvases[count]:
                    canvases[count] = prepared
            columns[:, count] = torch.tensor((target, index, seed))
            count += 1
        if not count:
            return Read(None, broken, problem)
        targets, indices, seeds = columns[:, :count].unbind()
        batch = Batch(canvases[:count], targets, indices, seeds, request.augmentation)
        return Read(batch, broken, problem)

    def _fetch(self, path: str, row: int, into: torch.Tensor) -> str:
        """Fills in one canvas; returns what is wrong with the cache, if anything is."""
        problem = ""
        if self.cache is not None and row >= 0:
            try:
                if self.cache.copy(row, path, into.numpy()):
                    return ""
            except DamagedCacheError as error:
                self.cache, problem = None, str(error)
        into.copy_(read_canvas(path, self.side))
        return problem


GRACE_SECONDS = 30
"""A worker lives on for so long after SIGTERM."""


def start_worker(_worker: int) -> None:
    """Prepares a worker process: one thread, since there are as many workers as cores to use."""
    torch.set_num_threads(1)
    # Both may reach a whole group of processes: the main one saves, then closes its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.alarm(GRACE_SECONDS))


def as_it_is(read: Any) -> Any:
    """What the DataLoader does to a request's answer."""
    return read


_READERS: weakref.WeakSet[Reader] = weakref.WeakSet()
"""Those that may have workers."""


@atexit.register
def _close_workers() -> None:
    """Lets workers end by themselves; multiprocessing, which comes next, would wait out their
    grace."""
    for reader in _READERS:
        reader.close()


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


class _Requests(Sampler[Request]):
    """The requests that the workers are on now."""

    def __init__(self) -> None:
        self.current: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.current)


class Reader:
    """Reads canvases: with the workers of a whole run, which all its trainings and scorings share.

    One table is read at a time.

    Attributes:
        side: of the canvases, in pixels.
        cache: where canvases may lie; None decodes each image as it comes.
        quarantine: is told of broken images.
    """

    def __init__(
        self,
        side: int,
        *,
        workers: int = 0,
        cache: CanvasCache | None = None,
        quarantine: Quarantine | None = None,
        pin_memory: bool = False,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """
        Args:
            side: of the canvases, in pixels.
            workers: processes that read; 0 reads in this one. They start with the first batch.
            cache: see there; to be filled before.
            quarantine: None only leaves broken images out.
            pin_memory: deliver batches in page-locked memory.
            tell: given a line if the cache is damaged.
        """
        self.side, self.cache = side, cache
        self.quarantine = Quarantine(None, 1.0) if quarantine is None else quarantine
        self._pin_memory, self._tell = pin_memory, tell
        self._canvases, self._requests = Canvases(side, cache), _Requests()
        self._reading = 0
        self._workers: DataLoader[Any] | None = None
        if workers:
            self._workers = DataLoader(
                self._canvases,
                batch_size=None,
                sampler=self._requests,
                collate_fn=as_it_is,
                num_workers=workers,
                worker_init_fn=start_worker,
                persistent_workers=True,
                pin_memory=pin_memory,
                # Its own: seeding workers would advance the global generator.
                generator=torch.Generator(),
            )
            _READERS.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; they would start again."""
        iterator: Any = getattr(self._workers, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
            self._workers._iterator = None  # type: ignore[union-attr]

    def read(self, requests: Iterable[Request]) -> Iterator[Read]:
        """Answers requests in their order, which are taken a few ahead.

        Raises:
            UserError: if there is too little shared memory for the workers.
        """
        self._reading += 1
        reading = self._reading
        for read in self._answers(requests):
            if read.cache_problem and self.cache is not None:
                self.cache = None
                self._tell(
                    f"the cache of canvases is left alone: {read.cache_problem}; images are "
                    "decoded as they come (delete its folder, and it is made anew)"
                )
            yield read
            if reading != self._reading:
                raise RuntimeError("a reader reads one table at a time")

    def _answers(self, requests: Iterable[Request]) -> Iterator[Read]:
        if self._workers is None:
            for request in requests:
                read = self._canvases[request]
                yield read.pin_memory() if self._pin_memory else read
            return
        self._requests.current = requests
        try:
            yield from self._workers
        except (RuntimeError, OSError) as error:
            # What the error's traceback holds is collected as a cycle, in which the workers' queues
            # go first: the workers would be waited for in vain, 10 s each (torch 2.15).
            self.close()
            if not _is_out_of_shared_memory(error):
                raise
            raise UserError(
                "worker processes need shared memory to hand over their batches, but it is used "
                f"up{_size_of_shared_memory()}; use --workers 0, or enlarge it (of a container: "
                "docker run --shm-size 4g)"
            ) from error


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

    def request(self, draws: list[Draw]) -> Request:
        """For one batch."""
        indices = [index for index, _ in draws]
        return Request(
            paths=[self.paths[index] for index in indices],
            targets=[self.targets[index] for index in indices],
            indices=indices,
            seeds=[seed for _, seed in draws],
            rows=[self.rows[index] for index in indices],
            augmentation=self.augmentation,
        )


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
    ) -> None:
        """
        Args:
            reader: reads them.
            table: has the columns img_name and path, and target unless it is unlabelled.
            plan: which rows come when.
            augmentation: of the views; None leaves images as they are.
        """
        self.table = table
        self._reader, self._plan = reader, plan
        paths: list[str] = table["path"].tolist()
        self._source = _Source(
            paths=paths,
            targets=table["target"].tolist() if "target" in table else [NO_TARGET] * len(table),
            rows=[-1] * len(table) if reader.cache is None else reader.cache.locate(paths),
            augmentation=augmentation,
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

    def numbered(self, start: int = 0) -> Iterator[tuple[int, Batch]]:
        """The batches of the epoch with their numbers, which a batch that broken images leave too
        small keeps to itself.

        Args:
            start: number of the first one, from 0: those before it are not even read.

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
        requests = map(self._source.request, self._plan)
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
    return Loader(reader, table, plan, augmentation)


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
