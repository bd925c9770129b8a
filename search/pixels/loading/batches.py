"""A batch: canvases, and what networks see of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from search.pixels.augmentation.augment import Augmentation, render

NO_TARGET = -1
"""Target of the images of an unlabelled list."""

Images = Tensor | dict[int, Tensor]
"""What networks see of a batch: squares (N, 3, S, S), or those of several sizes S by S."""


@dataclass(frozen=True)
class Batch:
    """Canvases of one batch and where they come from; broken images are left out."""

    canvases: Tensor  # (N, 3, C, C) - uint8, prepared by `augmentation`; none, if there are views
    targets: Tensor  # (N,) - int64, 1 = fake
    indices: Tensor  # (N,) - int64, rows of the table
    seeds: Tensor  # (N,) - int64, of the views
    augmentation: Augmentation | None = None  # None: images as they are
    views: Mapping[int, Tensor] = field(default_factory=dict)  # made by workers, by size

    def show(self, sizes: Iterable[int]) -> dict[int, Tensor]:
        """The views at some sizes, uint8 (N, 3, S, S) by S: the same views, each resampled once
        from the canvas, on the device that it is on, unless workers have made them."""
        if self.views:
            return {size: self.views[size] for size in sizes}
        return {size: render(self.canvases, self.seeds, self.augmentation, size) for size in sizes}

    def to(self, device: torch.device) -> Batch:
        """The batch with its pixels on a device; from page-locked memory, without waiting."""
        return replace(
            self,
            canvases=self.canvases.to(device, non_blocking=True),
            views={size: view.to(device, non_blocking=True) for size, view in self.views.items()},
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where a GPU fetches it without being waited for."""
        return replace(
            self,
            canvases=self.canvases.pin_memory(),
            targets=self.targets.pin_memory(),
            indices=self.indices.pin_memory(),
            seeds=self.seeds.pin_memory(),
            views={size: view.pin_memory() for size, view in self.views.items()},
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
