"""Colours and levels of image batches: uint8 (N, 3, H, W) in and out, on any device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from search.machine.device import widest_float

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")


def sent(values: Tensor, images: Tensor) -> Tensor:
    """Parameters from the CPU on the device of images. It is not waited for, which would cost a GPU
    its head start at each of a batch's alterations: CUDA stages what comes from pageable memory."""
    return values.to(images.device, non_blocking=True)


def spread(values: Tensor, images: Tensor) -> Tensor:
    """Values (N,) beside images: (N, 1, 1, 1), float32, on their device."""
    return sent(values.float(), images)[:, None, None, None]


def to_bytes(levels: Tensor) -> Tensor:
    """Clipped, fractions cut off; by way of integers, which takes a third of the time on a CPU."""
    return levels.clamp_(0, 255).to(torch.int32).to(torch.uint8)


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
            amounts = spread(parameters[chosen, kind], images)
            if len(chosen) == len(levels):
                levels = change(levels, amounts)
            else:
                where = sent(torch.tensor(chosen), images)
                levels[where] = change(levels[where], amounts)
    return to_bytes(levels)


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
    # Row by row, then in float64: a third of the time of float64 throughout, and nearly as exact.
    rows = levels.sum(3).to(widest_float(levels.device))
    means = (rows.sum(2) / levels[0, 0].numel())[..., None, None]
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
    tables = tables.clamp(0, 255).to(torch.uint8).to(images.device).expand(len(images), 3, 256)
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def _histograms(images: Tensor) -> Tensor:
    """Pixels of each level, int64 (N, 3, 256)."""
    channels = torch.arange(len(images) * 3, device=images.device).view(-1, 3, 1) * 256
    levels = (images.flatten(2).long() + channels).flatten()
    return torch.bincount(levels, minlength=len(images) * 768).view(-1, 3, 256)


def autocontrast(images: Tensor, _parameters: Tensor) -> Tensor:
    """Each channel stretched to all of 0 to 255, as Pillow does."""
    present = _histograms(images) > 0
    if widest_float(images.device) != torch.float64:
        present = present.cpu()  # float32 would cut 254.99998 to 254
    levels = torch.arange(256, device=present.device)
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
    return images & spread(masks[:, 0], images).to(torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Levels from a threshold (N, 1) on inverted."""
    return torch.where(images < spread(thresholds[:, 0], images), images, 255 - images)


def solarize_add(images: Tensor, amounts: Tensor) -> Tensor:
    """Whole levels (N, 1) added to those below 128."""
    brighter = images + spread(amounts[:, 0], images)
    return torch.where(images < 128, brighter.clamp_max(255).to(torch.uint8), images)
