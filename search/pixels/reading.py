"""Requests -> batches of canvases: one pool of workers for a whole run, with cache and
quarantine."""

from __future__ import annotations

import atexit
import errno
import shutil
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.utils.data import DataLoader, Dataset, Sampler

from search.data.inputs import tables
from search.data.splits import Splits
from search.errors import UserError
from search.machine.device import Runtime, keep_freed_memory
from search.machine.files import QUARANTINE
from search.machine.progress import Bars, tell_line
from search.pixels.augment import Augmentation
from search.pixels.batches import Batch
from search.pixels.cache import CanvasCache, DamagedCacheError, fill_cache, open_cache
from search.pixels.canvas import choose_side, read_canvas, sample_sizes
from search.pixels.images import BrokenImage
from search.pixels.quarantine import Quarantine
from search.pixels.slots import Slot, Slots

Integers = NDArray[np.int64]


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
        targets, indices, seeds = torch.from_numpy(self.columns).unbind()
        batch = Batch(views.pop(0), targets, indices, seeds, self.augmentation, views)
        return Read(batch, self.broken, self.cache_problem)

    def pin_memory(self) -> Read:
        """Called by the DataLoader, which knows only of tensors otherwise."""
        return self.received(pin_memory=True)


class Canvases(Dataset[Read | Sent]):
    """Gathers the canvases of a request, from the cache or from the image files."""

    def __init__(self, side: int, cache: CanvasCache | None) -> None:
        self.side, self.cache = side, cache

    def __getitem__(self, request: Request) -> Read | Sent:
        read = self.read(request)
        return read if request.slot is None else Sent.of(read, request.slot)

    def read(self, request: Request) -> Read:
        """Answers a request."""
        if not request.paths:
            return Read(None, [])
        canvases = torch.empty(len(request.paths), 3, self.side, self.side, dtype=torch.uint8)
        columns = torch.empty(3, len(request.paths), dtype=torch.int64)
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
        if request.sizes:
            views = batch.show(request.sizes)
            batch = replace(batch, canvases=canvases[:0], views=views)
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
    keep_freed_memory()  # every batch takes as much as the one before
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


PREFETCHED = 2
"""Batches that each worker reads ahead."""


class _Requests(Sampler[Request]):
    """The requests that the workers are on now, each with a slot for its answer."""

    def __init__(self, side: int, workers: int) -> None:
        self.current: Iterable[Request] = ()
        self._side = side
        # Those that are read ahead, and the one that is being received.
        self._count = PREFETCHED * workers + 1
        self._slots: list[Slots] = []

    def __iter__(self) -> Iterator[Request]:
        for request in self.current:
            yield replace(request, slot=self._slot(request.bytes(self._side)))

    def _slot(self, size: int) -> Slot:
        if not self._slots or self._slots[-1].size < size:
            # Batches that are on their way lie in the smaller ones, which therefore stay.
            self._slots.append(Slots(self._count, size))
        return self._slots[-1].take()

    def close(self) -> None:
        """Gives the memory back."""
        while self._slots:
            self._slots.pop().close()


class Reader:
    """Reads canvases: with the workers of a whole run, which all its trainings and scorings share.

    One table is read at a time.

    Attributes:
        side: of the canvases, in pixels.
        cache: where canvases may lie; None decodes each image as it comes.
        quarantine: is told of broken images.
        renders: whether its workers make the views.
    """

    def __init__(
        self,
        side: int,
        *,
        workers: int = 0,
        cache: CanvasCache | None = None,
        quarantine: Quarantine | None = None,
        pin_memory: bool = False,
        renders: bool = False,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """
        Args:
            side: of the canvases, in pixels.
            workers: processes that read; 0 reads in this one. They start with the first batch.
            cache: see there; to be filled before.
            quarantine: None only leaves broken images out.
            pin_memory: deliver batches in page-locked memory.
            renders: workers make the views as well, which on a CPU use its cores better; a GPU
                makes them faster itself.
            tell: given a line if the cache is damaged.
        """
        self.side, self.cache = side, cache
        self.quarantine = Quarantine(None, 1.0) if quarantine is None else quarantine
        self._pin_memory, self._tell = pin_memory, tell
        self.renders = renders and workers > 0
        self._canvases, self._requests = Canvases(side, cache), _Requests(side, workers)
        self._reading = 0
        self._workers: DataLoader[Any] | None = None
        if workers:
            self._workers = DataLoader(
                self._canvases,
                batch_size=None,
                sampler=self._requests,
                collate_fn=as_it_is,
                num_workers=workers,
                prefetch_factor=PREFETCHED,
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
        self._requests.close()

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
                read = self._canvases.read(request)
                yield read.pin_memory() if self._pin_memory else read
            return
        self._requests.current = requests
        # Before there are workers: each would start one of its own, which at its end deletes the
        # shared memory that it has seen (Python before 3.13).
        resource_tracker.ensure_running()
        try:
            for read in self._workers:
                yield read.received() if isinstance(read, Sent) else read
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


def choose_canvas(splits: Splits, image_sizes: Sequence[int]) -> int:
    """The side of a new run's canvas, from its images and the sizes of its networks."""
    paths = [path for table in tables(splits).values() for path in table["path"]]
    return choose_side(sample_sizes(paths), max(image_sizes))


def open_quarantine(run: Path, console: Console) -> Quarantine:
    """The quarantine of a run, which tells of what it sets aside."""
    return Quarantine(run / QUARANTINE, tell=_teller(console))


def open_reader(
    splits: Splits,
    canvas: int,
    *,
    cache: str,
    runtime: Runtime,
    quarantine: Quarantine,
    console: Console,
) -> Reader:
    """The reader of a run's images.

    Args:
        splits: the images.
        canvas: side in pixels.
        cache: see `open_cache`; what it lacks, `fill` adds.
        runtime: how many processes read, and whether a GPU fetches the batches.
        quarantine: is told of broken images.
        console: is told what is wrong with the cache.
    """
    # What is read most often comes first: select after every epoch of every trial.
    tables = (splits.select, splits.report, splits.fit)
    paths = [path for table in tables for path in table["path"].tolist()]
    tell = _teller(console)
    return Reader(
        canvas,
        workers=runtime.workers,
        cache=open_cache(cache, paths, canvas, tell),
        quarantine=quarantine,
        pin_memory=runtime.on_cuda,
        renders=runtime.device.type == "cpu",
        tell=tell,
    )


def fill(reader: Reader, console: Console, check: Callable[[], None]) -> None:
    """Brings a reader's cache up to date, with a bar; raises what `check` does, and goes on from
    there the next time."""
    if reader.cache is None:
        return
    reader.close()  # workers have the files of before open
    with Bars(console, time_left=True, transient=True) as bars:
        bar = bars.add("caching canvases", unit="images", plain="cached")

        def on_done(done: int, missing: int) -> None:
            bar.update(done, missing)
            check()

        fill_cache(reader.cache, _teller(console), on_done)


def _teller(console: Console) -> Callable[[str], None]:
    return lambda line: tell_line(console, line)
