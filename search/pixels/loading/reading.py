"""Requests -> batches of canvases: one pool of workers for a whole run, with cache and
quarantine."""

from __future__ import annotations

import atexit
import errno
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.data import DataLoader

from search.errors import UserError
from search.machine.device import Runtime
from search.pixels.cache import CanvasCache
from search.pixels.loading.workers import (
    PREFETCHED,
    Canvases,
    Read,
    Request,
    Requests,
    Sent,
    as_it_is,
    start_worker,
)
from search.pixels.quarantine import Quarantine

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
    """Whether there was none for the batches, a worker died of that, or could not be started."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    # A worker's death is told by the signal's handler, which the DataLoader wraps.
    told = f"{error} {error.__cause__}"
    return any(sign in told for sign in ("shared memory", "Bus error"))


def _size_of_shared_memory() -> str:
    if not SHARED_MEMORY.is_dir():
        return ""
    return f" ({SHARED_MEMORY} has {shutil.disk_usage(SHARED_MEMORY).total / 2**20:,.0f} MB)"


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
        self._canvases, self._requests = Canvases(side, cache), Requests(side, workers)
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

    @classmethod
    def on(cls, runtime: Runtime, side: int, **options: Any) -> Self:
        """A reader with the workers of a runtime, which hand over batches as its device wants them.

        Args:
            runtime: how many workers, and of which device.
            side: of the canvases, in pixels.
            options: the others of `Reader`.
        """
        return cls(
            side,
            workers=runtime.workers,
            pin_memory=runtime.on_cuda,
            renders=runtime.device.type == "cpu",
            **options,
        )

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
                # Of the canvases as well, that workers which start again are given.
                self.cache = self._canvases.cache = None
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
        # Before there are workers: each would start one of its own, which at its end deletes the
        # shared memory that it has seen (Python before 3.13).
        resource_tracker.ensure_running()
        try:
            self._requests.begin(requests)
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
