"""What worker processes are asked, and what they answer."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from search.machine.device import keep_freed_memory
from search.pixels.augmentation.augment import Augmentation
from search.pixels.augmentation.blending import mix
from search.pixels.cache import CanvasCache, DamagedCacheError
from search.pixels.canvas import read_canvas
from search.pixels.images import BrokenImage
from search.pixels.loading.batches import Batch
from search.pixels.loading.slots import Slot, Slots

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Partner:
    """A real that a fake is to be mixed with."""

    path: str
    index: int  # row of the table
    row: int  # of the cache; -1: not in it


@dataclass(frozen=True)
class Request:
    """A batch that is to be read: all that a worker must be told."""

    paths: list[str]
    targets: list[int]
    indices: list[int]  # rows of the table
    seeds: list[int]
    rows: list[int]  # of the cache; -1: not in it
    augmentation: Augmentation | None
    sizes: tuple[int, ...] = ()  # of the views to make; none: they are made where one trains
    partners: Mapping[int, Partner] = field(default_factory=dict)  # by the fake's place in paths
    slot: Slot | None = None  # where a worker puts the pixels

    def bytes(self, side: int) -> int:
        """Of the pixels that answer it, from canvases of a side in pixels."""
        return len(self.paths) * sum(3 * size**2 for size in self.sizes or (side,))


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
        """The same in page-locked memory."""
        return replace(self, batch=self.batch and self.batch.pin_memory())


@dataclass(frozen=True)
class Sent:
    """A Read on its way from a worker: its pixels lie in a slot."""

    slot: Slot
    shapes: dict[int, tuple[int, ...]]  # by the size of views, or 0 for canvases
    columns: Integers  # (3, N) - targets, indices, seeds
    augmentation: Augmentation | None
    broken: list[Broken]
    cache_problem: str

    @staticmethod
    def of(read: Read, slot: Slot) -> Read | Sent:
        """What a worker sends: its pixels are in the slot then."""
        batch = read.batch
        if batch is None:
            return read
        pixels = {0: batch.canvases, **batch.views}
        shapes = {name: tuple(tensor.shape) for name, tensor in pixels.items()}
        for name, placed in slot.place(shapes).items():
            placed.copy_(pixels[name])
        columns = torch.stack((batch.targets, batch.indices, batch.seeds)).numpy()
        return Sent(slot, shapes, columns, batch.augmentation, read.broken, read.cache_problem)

    def received(self, *, pin_memory: bool = False) -> Read:
        """The Read, in memory of this process; the slot is free afterwards."""
        views = dict(self.slot.copies(self.shapes, pin_memory=pin_memory))
        columns = torch.from_numpy(self.columns)
        targets, indices, seeds = (columns.pin_memory() if pin_memory else columns).unbind()
        batch = Batch(views.pop(0), targets, indices, seeds, self.augmentation, views)
        return Read(batch, self.broken, self.cache_problem)

    def pin_memory(self) -> Read:
        """Called by the DataLoader, which knows only of tensors otherwise."""
        return self.received(pin_memory=True)


class Canvases(Dataset[Read | Sent]):
    """Gathers the canvases of a request, from the cache or from the image files."""

    def __init__(self, side: int, cache: CanvasCache | None) -> None:
        self.side, self.cache = side, cache
        self._problem = ""  # of the cache, to be told with the next answer

    def __getitem__(self, request: Request) -> Read | Sent:
        read = self.read(request)
        return read if request.slot is None else Sent.of(read, request.slot)

    def read(self, request: Request) -> Read:
        """Answers a request."""
        if not request.paths:
            return Read(None, [])
        canvases = torch.empty(len(request.paths), 3, self.side, self.side, dtype=torch.uint8)
        columns = torch.empty(3, len(request.paths), dtype=torch.int64)
        count, broken = 0, list[Broken]()
        for place, (path, target, index, seed, row) in enumerate(
            zip(
                *(request.paths, request.targets, request.indices, request.seeds, request.rows),
                strict=True,
            )
        ):
            try:
                self._fetch(path, row, canvases[count])
            except BrokenImage as error:
                broken.append(Broken(index, str(error)))
                continue
            if place in request.partners:
                self._mix(request.partners[place], seed, canvases[count], broken)
            if request.augmentation is not None:
                prepared = request.augmentation.prepare(canvases[count], seed)
                if prepared is not canvases[count]:
                    canvases[count] = prepared
            columns[:, count] = torch.tensor((target, index, seed))
            count += 1
        problem, self._problem = self._problem, ""
        if not count:
            return Read(None, broken, problem)
        targets, indices, seeds = columns[:, :count].unbind()
        batch = Batch(canvases[:count], targets, indices, seeds, request.augmentation)
        if request.sizes:
            views = batch.show(request.sizes)
            batch = replace(batch, canvases=canvases[:0], views=views)
        return Read(batch, broken, problem)

    def _mix(self, partner: Partner, seed: int, into: torch.Tensor, broken: list[Broken]) -> None:
        """Mixes a real into a fake's canvas, which stays as it is where the real is broken."""
        real = torch.empty_like(into)
        try:
            self._fetch(partner.path, partner.row, real)
        except BrokenImage as error:
            broken.append(Broken(partner.index, str(error)))
            return
        into.copy_(mix(into, real, seed))

    def _fetch(self, path: str, row: int, into: torch.Tensor) -> None:
        """Fills in one canvas, from the cache or else from the file."""
        if self.cache is not None and row >= 0:
            try:
                if self.cache.copy(row, path, into.numpy()):
                    return
            except DamagedCacheError as error:
                self.cache, self._problem = None, str(error)
        into.copy_(read_canvas(path, self.side))


GRACE_SECONDS = 30
"""A worker lives on for so long after SIGTERM."""


def start_worker(_worker: int) -> None:
    """Prepares a worker process: one thread, since there are as many workers as cores to use."""
    torch.set_num_threads(1)
    keep_freed_memory()  # every batch takes as much as the one before
    # Both may reach a whole group of processes: the main one saves, then closes its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.alarm(GRACE_SECONDS))


def as_it_is(read: Any) -> Any:
    """What the DataLoader does to a request's answer."""
    return read


PREFETCHED = 2
"""Batches that each worker reads ahead."""


class Requests(Sampler[Request]):
    """The requests that the workers are on now, each with a slot for its answer."""

    def __init__(self, side: int, workers: int) -> None:
        """
        Args:
            side: of the canvases, in pixels.
            workers: how many there are.
        """
        self.current: Iterable[Request] = ()
        self._side = side
        # Those that are read ahead, and the one that is being received.
        self._count = PREFETCHED * workers + 1
        self._slots: list[Slots] = []

    def begin(self, requests: Iterable[Request]) -> None:
        """Takes up requests, and the memory that the first of them needs: an error here finds no
        workers that wait.

        Raises:
            OSError: if there is too little shared memory.
        """
        coming = iter(requests)
        first = list(itertools.islice(coming, 1))
        for request in first:
            self._reserve(request)
        self.current = itertools.chain(first, coming)

    def __iter__(self) -> Iterator[Request]:
        # What was asked before is answered when this begins, or was given up.
        for slots in self._slots[:-1]:
            slots.close()
        del self._slots[:-1]
        for request in self.current:
            self._reserve(request)
            slot = self._slots[-1].take() if request.paths else None
            yield replace(request, slot=slot)

    def _reserve(self, request: Request) -> None:
        size = request.bytes(self._side)
        if size and (not self._slots or self._slots[-1].size < size):
            # Batches that are on their way lie in the smaller ones, which stay until all are here.
            self._slots.append(Slots(self._count, size))

    def close(self) -> None:
        """Gives the memory back."""
        while self._slots:
            self._slots.pop().close()
