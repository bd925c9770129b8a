"""Shared memory in which workers hand over their batches, the same for one batch after another.

torch shares every tensor in a new file, whose pages the system clears when they are first touched:
for 32 images of 256 px that took 10 ms on a virtual machine, and copying them into and out of pages
that are there already 1 ms.

The memory has a name until it is given back: at the end of the process, or by multiprocessing's
resource tracker after a kill. A kill of both at once leaves it to the system's next start.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import torch
from torch import Tensor

Pixels = Mapping[int, Tensor]
"""uint8, by what they are: the size of views, or 0 for canvases."""

_ATTACHED: dict[str, SharedMemory] = {}
"""What this process has open, by name."""


@dataclass(frozen=True)
class Slot:
    """Where one batch may lie."""

    memory: str  # its name
    offset: int  # in bytes
    size: int  # in bytes

    def place(self, shapes: Mapping[int, tuple[int, ...]]) -> dict[int, Tensor]:
        """Tensors in the slot, one after another; they must be gone before another process uses it.

        Args:
            shapes: of the tensors, uint8.
        """
        buffer = _attached(self.memory).buf
        placed, offset = {}, self.offset
        for name, shape in shapes.items():
            count = math.prod(shape)
            assert offset + count <= self.offset + self.size
            if not count:  # of which torch makes no view
                placed[name] = torch.empty(shape, dtype=torch.uint8)
                continue
            flat = torch.frombuffer(buffer, dtype=torch.uint8, count=count, offset=offset)
            placed[name] = flat.view(shape)
            offset += count
        return placed

    def copies(self, shapes: Mapping[int, tuple[int, ...]], *, pin_memory: bool) -> Pixels:
        """What was placed in the slot, as this process's own; afterwards the slot is free."""
        copies = {}
        for name, placed in self.place(shapes).items():
            own = torch.empty(placed.shape, dtype=torch.uint8, pin_memory=pin_memory)
            copies[name] = own.copy_(placed)
        return copies


class Slots:
    """So many slots, used in turn.

    Attributes:
        size: of a slot, in bytes.
    """

    def __init__(self, count: int, size: int) -> None:
        """
        Raises:
            OSError: if there is too little shared memory.
        """
        self.count, self.size = count, size
        self._memory = SharedMemory(create=True, size=count * size)
        _ATTACHED[self._memory.name] = self._memory
        # A worker that was forked has a copy of this object, and must not end what is in use.
        self._give_back = weakref.finalize(self, _give_back, self._memory, os.getpid())
        self._next = 0
        # A page that cannot be had is an error here; touched for the first time, it is a SIGBUS.
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._memory._fd, 0, count * size)  # type: ignore[attr-defined]
            except OSError:
                self.close()
                raise

    def take(self) -> Slot:
        """The slot that was used the longest time ago."""
        number, self._next = self._next, (self._next + 1) % self.count
        return Slot(self._memory.name, number * self.size, self.size)

    def close(self) -> None:
        """Gives the memory back."""
        self._give_back()


def _give_back(memory: SharedMemory, owner: int) -> None:
    if os.getpid() == owner:
        _ATTACHED.pop(memory.name, None)
        _close(memory)
        memory.unlink()


def _attached(name: str) -> SharedMemory:
    if name not in _ATTACHED:
        # A worker, whose earlier memory was too small for this batch: it is done with it.
        for memory in _ATTACHED.values():
            _close(memory)
        _ATTACHED.clear()
        _ATTACHED[name] = SharedMemory(name)
    return _ATTACHED[name]


def _close(memory: SharedMemory) -> None:
    # Somebody may still look at it; it goes with the process then.
    with suppress(BufferError):
        memory.close()
