"""Alterations of image batches: uint8 (N, 3, H, W) in and out, on any device, with parameters of
each image that were drawn elsewhere.

A result depends on an image and its parameters alone, never on its neighbours in the batch.

Our own few lines, because parameters of each image are foreign to torchvision v2, and kornia 0.9
draws them from one generator for the whole batch. Ours are also the faster where the time goes:
`tests/benchmarks/pixels/bench_alterations.py` took, in ms for a face of 256 px on one core, ours /
torchvision on tensors / kornia on batches: crop and resize 0.27 / 0.28 / 2.29, jitter 0.86 / 3.49 /
5.43, blur 0.87 / 3.47 / 1.41, equalize 0.57 / 0.67 / 1.51; the others lose a third of a millisecond
at most (affine 1.06 / 0.95 / 1.15, noise 1.11 / 0.76 / 1.00). Resampling itself is torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from search.pixels.augmentation.blending import self_blend
from search.pixels.augmentation.colours import (
    autocontrast,
    equalize,
    grayscale,
    invert,
    jitter,
    posterize,
    sent,
    solarize,
    solarize_add,
    spread,
    to_bytes,
)
from search.pixels.augmentation.geometry import (
    affine,
    down_and_up,
    erase,
    hide_patches,
    mirror,
    one_thread,
)

Step = tuple[str, tuple[float, ...]]
"""The name of an operation, and its parameters for one image."""
Steps = tuple[Step, ...]


# Detail


def blur(images: Tensor, deviations: Tensor) -> Tensor:
    """Gaussian blur, edges repeated; standard deviations (N, 1) in pixels."""
    reaches = (3 * deviations).ceil_().clamp_min_(1)
    reach = int(reaches.max())
    distances = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (distances / deviations.clamp_min(1e-3)) ** 2)
    weights = weights * (distances.abs() <= reaches)  # a wider neighbour's taps are not its own
    weights = (weights / weights.sum(1, keepdim=True)).T  # (taps, N)
    taps = [spread(column, images) for column in weights]
    levels = images.float()
    # Shifted copies added up: on the CPU a third of the time of a depthwise convolution.
    for axis, pads in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        padded = F.pad(levels, pads, mode="replicate")
        count = images.shape[axis]
        levels = padded.narrow(axis, 0, count) * taps[0]
        for k, tap in enumerate(taps[1:], 1):
            levels.addcmul_(padded.narrow(axis, k, count), tap)
    return to_bytes(levels.round_())


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
    amount = spread(factors[:, 0], images)
    levels[..., 1:-1, 1:-1] = smooth + amount * (centre - smooth)
    return to_bytes(levels)


def noise(images: Tensor, parameters: Tensor) -> Tensor:
    """Gaussian noise, a function of an image's key: the same on any device, in any batch.

    Args:
        images: (N, 3, H, W), uint8.
        parameters: (N, 4): standard deviation in levels; 1 for noise that is the same in all
            channels, else 3; and the key, two integers in [0, 2**32).
    """
    deviations, channels, *keys = parameters.unbind(1)
    count = 3 * images.shape[-2] * images.shape[-1]
    values = _normal(sent(torch.stack(keys, 1).long(), images), count).reshape(images.shape)
    alike = channels.tolist()
    for number in (number for number, value in enumerate(alike) if value == 1):
        values[number, 1:] = values[number, :1]
    return to_bytes(values.mul_(spread(deviations, images)).add_(images).round_())


_BUCKETS = 2**16


@lru_cache
def _quantiles(device: torch.device) -> Tensor:
    """The normal distribution's, in as many equal buckets: +-4.3 are its ends."""
    shares = (torch.arange(_BUCKETS, dtype=torch.float64) + 0.5) / _BUCKETS
    quantiles: Tensor = torch.special.ndtri(shares)
    return quantiles.float().to(device)


def _normal(keys: Tensor, count: int) -> Tensor:
    """So many standard normal values for each key: (N, 2) -> (N, count), on its device.

    A hash of the counter, not a generator: torch's differ between devices. All products stay below
    2**63, so that no integer overflows.
    """
    device = keys.device
    first, second = keys[:, None].unbind(-1)  # (N, 1)
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


Operation = Callable[[Tensor, Tensor], Tensor]
"""Images (N, 3, H, W), uint8, and the parameters of each (N, P) -> images of the same shape."""

OPERATIONS: dict[str, Operation] = {
    operation.__name__: operation
    for operation in (
        *(mirror, affine, erase, jitter, grayscale, autocontrast, equalize, invert, posterize),
        *(solarize, solarize_add, blur, sharpen, noise, down_and_up, hide_patches, self_blend),
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
    with one_thread():
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
            chosen = sent(torch.tensor(numbers), images)
            altered = OPERATIONS[name](out[chosen], torch.tensor(parameters, dtype=torch.float64))
            out[chosen] = altered
    return out
