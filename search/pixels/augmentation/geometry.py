"""Sizes and geometry of image batches: uint8 (N, 3, H, W) in and out, on any device.

Resampling is torch's, antialiased as Pillow's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from search.machine.device import exact_float32
from search.pixels.augmentation.colours import sent, spread, to_bytes
from search.pixels.canvas import resample

GREY = 128
"""What lies outside of an image, in levels."""


class Filter(IntEnum):
    """A kernel of resampling."""

    NEAREST = 0
    BILINEAR = 1
    BICUBIC = 2
    LANCZOS = 3


@contextmanager
def one_thread() -> Iterator[None]:
    """Operations on an image are too small to be shared among cores: with anything else running on
    one of two cores, light took 1.9 ms an image with both, 1.1 with one, and 1.9 with a thread for
    every second image, each of which waits for Python's lock. Worker processes use more cores.

    It also keeps sums of floats from depending on the number of threads.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# Sizes


def resize(images: Tensor, size: int) -> Tensor:
    """Whole images, squares, at another size: `resample` on bytes."""
    if images.shape[-2:] == (size, size):
        return images
    return resample(images.float(), size).to(torch.uint8)


def crop_resize(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """A box of each image at the size S, in one antialiased bilinear step: (N, 3, S, S).

    Args:
        images: (N, 3, H, W), uint8.
        boxes: (N, 4), integers: top, left, height and width in pixels, inside the image.
        size: in pixels.
    """
    if images.device.type != "cpu":
        return crop_resize_together(images, boxes, size)
    out = images.new_empty(len(images), 3, size, size)
    with one_thread():
        for number, (top, left, height, width) in enumerate(boxes.tolist()):
            if height == width == size == images.shape[-2] == images.shape[-1]:
                out[number] = images[number]  # resampling would change nothing
                continue
            seen = images[number : number + 1, :, top : top + height, left : left + width]
            out[number] = _interpolate(seen, size, "bilinear")[0]
    return out


def crop_resize_together(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """`crop_resize` as one product for all images, instead of two kernels for each: within a level
    of it, slower on a CPU."""
    top, left, height, width = boxes.unbind(1)
    sizes, filters = torch.full_like(top, size), torch.full_like(top, Filter.BILINEAR)
    device = images.device
    rows = _weights(top, height, sizes, (size, images.shape[-2]), filters, device)
    columns = _weights(left, width, sizes, (size, images.shape[-1]), filters, device)
    return to_bytes(_separable(images.float(), rows, columns).round_())


def down_and_up(images: Tensor, parameters: Tensor) -> Tensor:
    """Squares resized to a smaller side and back again.

    Args:
        images: (N, 3, C, C), uint8.
        parameters: (N, 3): the smaller side in pixels, a `Filter` down, a `Filter` up.
    """
    side = images.shape[-1]
    small, down, up = parameters.long().unbind(1)
    full = torch.full_like(small, side)
    shrunk = _resample(images, full, small, int(small.max()), down)
    return _resample(shrunk, small, full, side, up)


def _resample(
    images: Tensor, lengths: Tensor, counts: Tensor, size: int, filters: Tensor
) -> Tensor:
    """The first pixels of each axis as so many others, in images (N, 3, size, size)."""
    if images.device.type == "cpu" and len(images) == 1 and filters[0] != Filter.LANCZOS:
        return _interpolate(images, size, Filter(int(filters[0])).name.lower())
    shape = (size, images.shape[-1])
    starts = torch.zeros_like(lengths)
    weights = _weights(starts, lengths, counts, shape, filters, images.device)
    return to_bytes(_separable(images.float(), weights, weights).round_())


def _interpolate(images: Tensor, size: int, mode: str) -> Tensor:
    """On bytes of the CPU, four times as fast as on floats."""
    if size == 1 or images.shape[-2:] == (1, 1):
        # torch 2.15 takes an image of one pixel for another memory format, and raises.
        levels = F.interpolate(
            images.float(), (size, size), mode=mode, align_corners=False, antialias=True
        )
        return to_bytes(levels.round_())
    return F.interpolate(images, (size, size), mode=mode, align_corners=False, antialias=True)


def _separable(levels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Levels (N, 3, H, W) mapped by (N, S, H) and (N, T, W) to (N, 3, S, T)."""
    # TF32, which is for training alone, would leave many pixels a level off.
    with exact_float32() if levels.is_cuda else nullcontext():
        return rows[:, None] @ levels @ columns[:, None].mT


def _weights(
    starts: Tensor,
    lengths: Tensor,
    counts: Tensor,
    shape: tuple[int, int],
    filters: Tensor,
    device: torch.device,
) -> Tensor:
    """What antialiased resampling along one axis takes from where, (N, *shape), float32, made on a
    device.

    Args:
        starts: (N,), where each image's stretch of the axis begins, in pixels.
        lengths: (N,), how long it is.
        counts: (N,), to how many pixels it is brought; further rows are 0.
        shape: rows and columns of each matrix.
        filters: (N,), a `Filter` each.
        device: of the matrices; the other arguments are on the CPU.
    """
    names = filters.unique().tolist()  # before they are on a GPU, which would be waited for
    starts, lengths, counts, filters = (
        column.float().to(device, non_blocking=True)[:, None, None]
        for column in (starts, lengths, counts, filters)
    )
    row = torch.arange(shape[0], dtype=torch.float32, device=device)[:, None]
    column = torch.arange(shape[1], dtype=torch.float32, device=device)
    scale = lengths / counts
    distance = (column + 0.5 - starts - (row + 0.5) * scale) / scale.clamp_min(1.0)
    weights = torch.zeros_like(distance)
    for name in names:
        weights = torch.where(filters == name, _KERNELS[name](distance.abs()), weights)
    weights = weights * (column >= starts) * (column < starts + lengths)
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.where(row < counts, weights, 0.0)


def _cubic(x: Tensor) -> Tensor:
    """With the coefficient -0.5, as Pillow's."""
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, inner, outer) * (x < 2)


_KERNELS: dict[int, Callable[[Tensor], Tensor]] = {
    Filter.BILINEAR: lambda x: 1 - x.clamp_max(1),
    Filter.BICUBIC: _cubic,
    Filter.LANCZOS: lambda x: torch.sinc(x) * torch.sinc(x / 3) * (x < 3),
}
"""Of distances, in pixels of the coarser side."""


# Geometry


def mirror(images: Tensor, axes: Tensor) -> Tensor:
    """Images mirrored left to right (axis -1) or upside down (axis -2); axes (N, 1)."""
    horizontal = (axes[:, 0] == -1).tolist()
    if all(horizontal):
        return images.flip(-1)
    if not any(horizontal):
        return images.flip(-2)
    return torch.where(spread(axes[:, 0], images) == -1, images.flip(-1), images.flip(-2))


def affine(images: Tensor, parameters: Tensor) -> Tensor:
    """Images seen through an affine map; what comes from outside is grey.

    Pillow's `transform`, but for the bicubic coefficient: -0.75 in torch, -1 in Pillow.

    Args:
        images: (N, 3, H, W), uint8.
        parameters: (N, 7): the rows (a, b, c) and (d, e, f) of the map from a pixel to where it
            comes from, both from -1 to 1 across the image, and a `Filter` (not Lanczos).
    """
    grid = _grid(sent(parameters[:, :6].float(), images), images.shape[-2:])
    furthest = torch.maximum(*grid.abs().unbind(-1))[:, None]  # (N, 1, H, W)
    filters = parameters[:, 6].tolist()
    out = torch.empty_like(images)
    for name in sorted(set(filters)):
        own = [number for number, value in enumerate(filters) if value == name]
        chosen = sent(torch.tensor(own), images)
        levels = F.grid_sample(
            images[chosen].float(),
            grid[chosen],
            mode=Filter(int(name)).name.lower(),
            padding_mode="border",
            align_corners=False,
        )
        # Fractions are cut off, as Pillow does, but not those that stand for a whole level.
        out[chosen] = to_bytes(levels.add_(1e-3))
    return torch.where(furthest <= 1, out, GREY)


def _grid(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """Where the pixels come from, (N, H, W, 2), for maps (N, 6)."""
    height, width = shape
    device = maps.device
    x = (torch.arange(width, device=device) * 2 + 1).float() / width - 1
    y = ((torch.arange(height, device=device) * 2 + 1).float() / height - 1)[:, None]
    grid = torch.empty(len(maps), height, width, 2, device=device)
    for axis, own in enumerate(maps[..., None, None].split(3, 1)):
        along, across, shift = own.unbind(1)
        torch.add(along * x, across * y + shift, out=grid[..., axis])
    return grid


def rotation(degrees: float) -> tuple[float, ...]:
    """The map of `affine` that turns an image counter-clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (cos, -sin, 0.0, sin, cos, 0.0)


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Images with a black box; boxes (N, 4): top, left, height and width in shares of the image."""
    height, width = images.shape[-2:]
    sides = torch.tensor((height, width, height, width))
    # From edge to edge rounded, so that a box never leaves the image.
    edges = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1) * sides
    out = images.clone()
    for image, (top, left, bottom, right) in zip(out, edges.round().long().tolist(), strict=True):
        image[:, top:bottom, left:right] = 0
    return out


PATCHES = 16
"""Along a side of an image: at 224 px each has 14."""


def hide_patches(images: Tensor, parameters: Tensor) -> Tensor:
    """Images with some of their patches in their mean colour, so that no single place tells all
    (Hide-and-Seek, arXiv:1704.04232).

    Args:
        images: (N, 3, H, W), uint8.
        parameters: (N, 3): the share that is hidden; and a key, two integers in [0, 2**32).
    """
    hidden = np.stack(
        [
            np.random.default_rng((int(first), int(second))).random((PATCHES, PATCHES)) < share
            for share, first, second in parameters.tolist()
        ]
    )
    rows, columns = (torch.arange(side) * PATCHES // side for side in images.shape[-2:])
    where = sent(torch.from_numpy(hidden)[:, None, rows[:, None], columns], images)
    means = images.float().mean((2, 3), keepdim=True).round_().to(torch.uint8)
    return torch.where(where, means, images)
