"""Alterations of image batches: uint8 (N, 3, H, W) in and out, on any device, with parameters of
each image that were drawn elsewhere.

A result depends on an image and its parameters alone, never on its neighbours in the batch.

Our own few lines, because parameters of each image are foreign to torchvision v2, and kornia 0.9
draws them from one generator for the whole batch. Ours are also the faster where the time goes:
`tests/benchmarks/bench_alterations.py` took, in ms for a face of 256 px on one core, ours /
torchvision on tensors / kornia on batches: crop and resize 0.27 / 0.28 / 2.29, jitter 0.86 / 3.49 /
5.43, blur 0.87 / 3.47 / 1.41, equalize 0.57 / 0.67 / 1.51; the others lose a third of a millisecond
at most (affine 1.06 / 0.95 / 1.15, noise 1.11 / 0.76 / 1.00). Resampling itself is torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from search.pixels.canvas import resample

GREY = 128
"""What lies outside of an image, in levels."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")


Step = tuple[str, tuple[float, ...]]
"""The name of an operation, and its parameters for one image."""
Steps = tuple[Step, ...]


class Filter(IntEnum):
    """A kernel of resampling."""

    NEAREST = 0
    BILINEAR = 1
    BICUBIC = 2
    LANCZOS = 3


@contextmanager
def _one_thread() -> Iterator[None]:
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
    with _one_thread():
        for number, (top, left, height, width) in enumerate(boxes.tolist()):
            seen = images[number : number + 1, :, top : top + height, left : left + width]
            out[number] = _interpolate(seen, size, "bilinear")[0]
    return out


def crop_resize_together(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """`crop_resize` as one product for all images, instead of two kernels for each: within a level
    of it, slower on a CPU."""
    top, left, height, width = boxes.unbind(1)
    sizes, filters = torch.full_like(top, size), torch.full_like(top, Filter.BILINEAR)
    rows = _weights(top, height, sizes, (size, images.shape[-2]), filters)
    columns = _weights(left, width, sizes, (size, images.shape[-1]), filters)
    return _to_bytes(_separable(images.float(), rows, columns).round_())


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
    weights = _weights(torch.zeros_like(lengths), lengths, counts, shape, filters)
    return _to_bytes(_separable(images.float(), weights, weights).round_())


def _interpolate(images: Tensor, size: int, mode: str) -> Tensor:
    """On bytes of the CPU, four times as fast as on floats."""
    if size == 1 or images.shape[-2:] == (1, 1):
        # torch 2.15 takes an image of one pixel for another memory format, and raises.
        levels = F.interpolate(
            images.float(), (size, size), mode=mode, align_corners=False, antialias=True
        )
        return _to_bytes(levels.round_())
    return F.interpolate(images, (size, size), mode=mode, align_corners=False, antialias=True)


def _separable(levels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Levels (N, 3, H, W) mapped by (N, S, H) and (N, T, W) to (N, 3, S, T)."""
    rows, columns = rows.to(levels.device), columns.to(levels.device)
    return rows[:, None] @ levels @ columns[:, None].mT


def _weights(
    starts: Tensor, lengths: Tensor, counts: Tensor, shape: tuple[int, int], filters: Tensor
) -> Tensor:
    """What antialiased resampling along one axis takes from where, (N, *shape), float32.

    Args:
        starts: (N,), where each image's stretch of the axis begins, in pixels.
        lengths: (N,), how long it is.
        counts: (N,), to how many pixels it is brought; further rows are 0.
        shape: rows and columns of each matrix.
        filters: (N,), a `Filter` each.
    """
    starts, lengths, counts, filters = (
        column.float()[:, None, None] for column in (starts, lengths, counts, filters)
    )
    row = torch.arange(shape[0], dtype=torch.float32)[:, None]
    column = torch.arange(shape[1], dtype=torch.float32)
    scale = lengths / counts
    distance = (column + 0.5 - starts - (row + 0.5) * scale) / scale.clamp_min(1.0)
    weights = torch.zeros_like(distance)
    for name in filters.unique().tolist():
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
    return torch.where(_spread(axes[:, 0], images) == -1, images.flip(-1), images.flip(-2))


def affine(images: Tensor, parameters: Tensor) -> Tensor:
    """Images seen through an affine map; what comes from outside is grey.

    Pillow's `transform`, but for the bicubic coefficient: -0.75 in torch, -1 in Pillow.

    Args:
        images: (N, 3, H, W), uint8.
        parameters: (N, 7): the rows (a, b, c) and (d, e, f) of the map from a pixel to where it
            comes from, both from -1 to 1 across the image, and a `Filter` (not Lanczos).
    """
    grid = _grid(parameters[:, :6].float().to(images.device), images.shape[-2:])
    furthest = torch.maximum(*grid.abs().unbind(-1))[:, None]  # (N, 1, H, W)
    filters = parameters[:, 6].tolist()
    out = torch.empty_like(images)
    for name in sorted(set(filters)):
        chosen = [number for number, value in enumerate(filters) if value == name]
        levels = F.grid_sample(
            images[chosen].float(),
            grid[chosen],
            mode=Filter(int(name)).name.lower(),
            padding_mode="border",
            align_corners=False,
        )
        # Fractions are cut off, as Pillow does, but not those that stand for a whole level.
        out[chosen] = _to_bytes(levels.add_(1e-3))
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


# Colour


def jitter(images: Tensor, parameters: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue changed one after the other, in each image's order.

    Pillow's ImageEnhance and a turn of the hue in HSV, but rounded once, at the end.

    Args:
        images: (N, 3, H, W), uint8.
        parameters: (N, 8): factors of brightness, contrast and saturation (1 leaves them), a turn
            of the hue (of 1; 0 leaves it), and the numbers 0 to 3 of these in the order they come.
    """
    factors, orders = parameters[:, :4].tolist(), parameters[:, 4:].long().tolist()
    levels = images.float()
    for position in range(4):
        for kind, (change, neutral) in enumerate(_CHANGES):
            chosen = [
                number
                for number, order in enumerate(orders)
                if order[position] == kind and factors[number][kind] != neutral
            ]
            if not chosen:
                continue
            amounts = _spread(parameters[chosen, kind], images)
            if len(chosen) == len(levels):
                levels = change(levels, amounts)
            else:
                where = torch.tensor(chosen, device=images.device)
                levels[where] = change(levels[where], amounts)
    return _to_bytes(levels)


def _luma(levels: Tensor) -> Tensor:
    """Of levels (N, 3, H, W), (N, 1, H, W)."""
    red, green, blue = levels.split(1, 1)
    luma: Tensor = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return luma


# In place where they can: new memory of this size comes from the system page by page, which costs
# more than the arithmetic (hue at 224 px: 1.7 ms on one core; so, 0.3).


def _brightness(levels: Tensor, factors: Tensor) -> Tensor:
    return levels.mul_(factors).clamp_(0, 255)


def _contrast(levels: Tensor, factors: Tensor) -> Tensor:
    # In float64, so that the last bit of a sum does not depend on the number of threads.
    means = levels.mean((2, 3), dtype=torch.float64)[..., None, None]
    mean = _luma(means).add_(0.5).floor_().float()
    return levels.mul_(factors).add_((1 - factors) * mean).clamp_(0, 255)


def _saturation(levels: Tensor, factors: Tensor) -> Tensor:
    luma = _luma(levels).mul_(1 - factors)
    return levels.mul_(factors).add_(luma).clamp_(0, 255)


def _hue(levels: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue of HSV; value and saturation, so the largest and the least channel, stay."""
    red, green, blue = levels.split(1, 1)
    most = torch.maximum(red, green)
    torch.maximum(most, blue, out=most)
    least = torch.minimum(red, green)
    torch.minimum(least, blue, out=least)
    chroma = most - least
    scale = chroma.clamp_min(1e-6).reciprocal_()
    # Sixths of a turn: where red is the most, from -1 to 1; green, 1 to 3; blue, 3 to 5. Chosen by
    # weights of 0 and 1, since `where` takes five times as long.
    where_blue = (red - green).mul_(scale).add_(4)
    where_green = (blue - red).mul_(scale).add_(2)
    hue = (green - blue).mul_(scale)
    not_green = torch.sub(most, green, out=scale).sign_()
    where_green.lerp_(where_blue, not_green)
    hue.lerp_(where_green, torch.sub(most, red, out=most).sign_())
    hue.mul_(1 / 6).add_(turns + 1)  # positive, for `frac`
    # Each channel's share of the chroma is a trapezium over the hue, shifted by a third of a turn.
    for channel, shift in zip((red, green, blue), (0, 2 / 3, 1 / 3), strict=True):
        torch.add(hue, shift, out=channel)
    return levels.frac_().mul_(6).sub_(3).abs_().sub_(1).clamp_(0, 1).mul_(chroma).add_(least)


_CHANGES: tuple[tuple[Callable[[Tensor, Tensor], Tensor], float], ...] = (
    (_brightness, 1.0),
    (_contrast, 1.0),
    (_saturation, 1.0),
    (_hue, 0.0),
)


def grayscale(images: Tensor, _parameters: Tensor) -> Tensor:
    """Pillow's luma in all channels, to the bit."""
    red, green, blue = images.int().split(1, 1)
    luma: Tensor = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.to(torch.uint8).expand_as(images).contiguous()


# Levels: what maps each level of a channel to another


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Maps levels by tables, (N or 1, 3 or 1, 256)."""
    tables = tables.clamp(0, 255).to(images.device, torch.uint8).expand(len(images), 3, 256)
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def _histograms(images: Tensor) -> Tensor:
    """Pixels of each level, int64 (N, 3, 256)."""
    channels = torch.arange(len(images) * 3, device=images.device).view(-1, 3, 1) * 256
    levels = (images.flatten(2).long() + channels).flatten()
    return torch.bincount(levels, minlength=len(images) * 768).view(-1, 3, 256)


def autocontrast(images: Tensor, _parameters: Tensor) -> Tensor:
    """Each channel stretched to all of 0 to 255, as Pillow does."""
    levels = torch.arange(256, device=images.device)
    present = _histograms(images) > 0
    lowest = torch.where(present, levels, 255).amin(-1, keepdim=True).double()
    highest = torch.where(present, levels, 0).amax(-1, keepdim=True).double()
    scale = 255.0 / (highest - lowest).clamp_min(1)
    stretched = (levels * scale - lowest * scale).trunc()
    return _look_up(images, torch.where(highest > lowest, stretched, levels))


def equalize(images: Tensor, _parameters: Tensor) -> Tensor:
    """Each channel's levels made about equally frequent, as Pillow does."""
    levels = torch.arange(256, device=images.device)
    counts = _histograms(images)
    highest = torch.where(counts > 0, levels, 0).amax(-1, keepdim=True)
    step = (counts.sum(-1, keepdim=True) - counts.gather(-1, highest)) // 255
    equal = (step // 2 + counts.cumsum(-1) - counts) // step.clamp_min(1)
    return _look_up(images, torch.where(step > 0, equal, levels))


def invert(images: Tensor, _parameters: Tensor) -> Tensor:
    """The negative."""
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The highest bits of each level alone; bits (N, 1), 8 leave an image as it is."""
    masks = 256 - 2 ** (8 - bits.long())
    return images & _spread(masks[:, 0], images).to(torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Levels from a threshold (N, 1) on inverted."""
    return torch.where(images < _spread(thresholds[:, 0], images), images, 255 - images)


def solarize_add(images: Tensor, amounts: Tensor) -> Tensor:
    """Whole levels (N, 1) added to those below 128."""
    brighter = images + _spread(amounts[:, 0], images)
    return torch.where(images < 128, brighter.clamp_max(255).to(torch.uint8), images)


# Detail


def blur(images: Tensor, deviations: Tensor) -> Tensor:
    """Gaussian blur, edges repeated; standard deviations (N, 1) in pixels."""
    reach = max(1, math.ceil(3 * float(deviations.max())))
    distances = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (distances / deviations.clamp_min(1e-3)) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).T  # (taps, N)
    taps = [_spread(column, images) for column in weights]
    levels = images.float()
    # Shifted copies added up: on the CPU a third of the time of a depthwise convolution.
    for axis, pads in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        padded = F.pad(levels, pads, mode="replicate")
        count = images.shape[axis]
        levels = padded.narrow(axis, 0, count) * taps[0]
        for k, tap in enumerate(taps[1:], 1):
            levels.addcmul_(padded.narrow(axis, k, count), tap)
    return _to_bytes(levels.round_())


def sharpen(images: Tensor, factors: Tensor) -> Tensor:
    """Pillow's sharpness: 0 smooths with a kernel of 3 x 3, 1 leaves, 2 sharpens; factors (N, 1).

    The outermost pixels stay as they are.
    """
    levels = images.float()
    if min(images.shape[-2:]) < 3:
        return images
    centre = levels[..., 1:-1, 1:-1]
    # 5 of 13 for the pixel itself, 1 of 13 for each of its eight neighbours.
    smooth = F.avg_pool2d(levels, 3, stride=1).mul_(9 / 13).add_(centre, alpha=4 / 13)
    smooth = smooth.add_(0.5).floor_()
    amount = _spread(factors[:, 0], images)
    levels[..., 1:-1, 1:-1] = smooth + amount * (centre - smooth)
    return _to_bytes(levels)


def noise(images: Tensor, parameters: Tensor) -> Tensor:
    """Gaussian noise, a function of an image's key: the same on any device, in any batch.

    Args:
        images: (N, 3, H, W), uint8.
        parameters: (N, 4): standard deviation in levels; 1 for noise that is the same in all
            channels, else 3; and the key, two integers in [0, 2**32).
    """
    deviations, channels, *keys = parameters.unbind(1)
    count = 3 * images.shape[-2] * images.shape[-1]
    values = _normal(torch.stack(keys, 1).long(), count, images.device).reshape(images.shape)
    alike = channels.tolist()
    for number in (number for number, value in enumerate(alike) if value == 1):
        values[number, 1:] = values[number, :1]
    return _to_bytes(values.mul_(_spread(deviations, images)).add_(images).round_())


_BUCKETS = 2**16


@lru_cache
def _quantiles(device: torch.device) -> Tensor:
    """The normal distribution's, in as many equal buckets: +-4.3 are its ends."""
    shares = (torch.arange(_BUCKETS, dtype=torch.float64) + 0.5) / _BUCKETS
    quantiles: Tensor = torch.special.ndtri(shares)
    return quantiles.float().to(device)


def _normal(keys: Tensor, count: int, device: torch.device) -> Tensor:
    """So many standard normal values for each key: (N, 2) -> (N, count).

    A hash of the counter, not a generator: torch's differ between devices. All products stay below
    2**63, so that no integer overflows.
    """
    first, second = keys.to(device)[:, None].unbind(-1)  # (N, 1)
    pairs = (count + 1) // 2
    state = torch.arange(pairs, device=device) ^ first
    shifted = torch.empty_like(state)
    for key in (second, first, torch.zeros_like(first)):
        state.bitwise_xor_(torch.bitwise_right_shift(state, 16, out=shifted))
        state.mul_(0x45D9F3B).bitwise_and_(2**32 - 1).bitwise_xor_(key)
    state.bitwise_xor_(torch.bitwise_right_shift(state, 16, out=shifted))
    # Two values of 16 bits each.
    values = torch.empty(len(keys), 2 * pairs, device=device)
    values[:, pairs:] = _quantiles(device).take(torch.bitwise_right_shift(state, 16, out=shifted))
    values[:, :pairs] = _quantiles(device).take(state.bitwise_and_(_BUCKETS - 1))
    return values[:, :count]


def _spread(values: Tensor, images: Tensor) -> Tensor:
    """Values (N,) beside images: (N, 1, 1, 1), float32, on their device."""
    return values.float().to(images.device, non_blocking=True)[:, None, None, None]


def _to_bytes(levels: Tensor) -> Tensor:
    """Clipped, fractions cut off; by way of integers, which takes a third of the time on a CPU."""
    return levels.clamp_(0, 255).to(torch.int32).to(torch.uint8)


Operation = Callable[[Tensor, Tensor], Tensor]
"""Images (N, 3, H, W), uint8, and the parameters of each (N, P) -> images of the same shape."""

OPERATIONS: dict[str, Operation] = {
    operation.__name__: operation
    for operation in (
        *(mirror, affine, erase, jitter, grayscale, autocontrast, equalize, invert, posterize),
        *(solarize, solarize_add, blur, sharpen, noise, down_and_up),
    )
}
"""Those that keep the size, by name."""


def alter(images: Tensor, steps: Sequence[Sequence[Step]]) -> Tensor:
    """Images with their alterations one after the other, each image its own.

    On the CPU image by image, which stays in the caches of the processor; elsewhere the images that
    have the same alteration next go together.

    Args:
        images: (N, 3, H, W), uint8; left as they are.
        steps: of each image, names in OPERATIONS with their parameters.
    """
    if images.device.type == "cpu":
        return alter_one_by_one(images, steps)
    return alter_together(images, steps)


def alter_one_by_one(images: Tensor, steps: Sequence[Sequence[Step]]) -> Tensor:
    """`alter`, image by image."""
    out = images.clone()
    with _one_thread():
        for number, own in enumerate(steps):
            image = images[number : number + 1]
            for name, parameters in own:
                image = OPERATIONS[name](image, torch.tensor([parameters], dtype=torch.float64))
            if own:
                out[number] = image[0]
    return out


def alter_together(images: Tensor, steps: Sequence[Sequence[Step]]) -> Tensor:
    """`alter`, the images with the same next alteration at once."""
    out = images.clone()
    for position in range(max(map(len, steps), default=0)):
        groups: dict[str, list[int]] = {}
        for number, own in enumerate(steps):
            if position < len(own):
                groups.setdefault(own[position][0], []).append(number)
        for name, numbers in groups.items():
            parameters = [steps[number][position][1] for number in numbers]
            chosen = torch.tensor(numbers, device=images.device)
            altered = OPERATIONS[name](out[chosen], torch.tensor(parameters, dtype=torch.float64))
            out[chosen] = altered
    return out
