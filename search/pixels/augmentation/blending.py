"""Fakes that are made of two images within a soft blob.

Self-blended ones are a real image and an altered copy of itself (arXiv:2204.08376). They have what
forgeries have in common, a border between two sources that do not quite agree. The paper blends
within the landmarks of the face; none are at hand here, so it is a soft blob at a random place.

Mixed ones are a fake with a real of its group around it: the person and the place stay, what is odd
about the whole of a fake tells less, and what is forged is smaller or fainter. Detectors of
generated images held better on other generators with such images beside the rest of their recipe:
inpainted ones with their first background (arXiv:2412.17671), and reals mixed with their
reconstructions at a random ratio (arXiv:2505.14359).
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from search.pixels.augmentation.colours import jitter, sent, to_bytes
from search.pixels.augmentation.geometry import Filter, affine, one_thread

LARGEST_SHIFT, LARGEST_SCALING = 0.03, 0.05
"""Of the copy, in shares of the image, as in the paper."""

LOBES = (2, 3, 4)
"""Waves that make a blob's edge uneven, by how often they go around it."""

LARGEST_WAVE = 0.1
"""Of an edge, in shares of the blob's radius."""

REACH = 0.88
"""How far a blob lies from the middle of the image at most, of 1: what a shift and a scaling bring
in from outside stays beyond it."""

RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
"""How much of the copy is seen within, as in the paper."""

MIXED_RADII, MIXED_CENTRE = (0.4, 0.8), 0.16
"""Of a blob with a fake within, and how far it lies from the middle at most, of 1: about as large
as the faces of the challenge, like the masks of `search.expand`."""

SMALLEST_SHARE = 0.1
"""Of what tells a fake from the real, that a mix of them must keep to be fake; as there. Of 200
fakes drawn from the demo set 8% would keep less, and of 165 from dfdc-faces, whose pairs are other
frames of a film, 25%."""


def draw_blend(rng: random.Random) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """A random blend, as a step of `self_blend`."""
    scale = 1 + _signed(rng, 0.01, LARGEST_SCALING)
    # From a pixel to where it comes from, both from -1 to 1 across the image.
    shift_x, shift_y = (2 * _signed(rng, 0.005, LARGEST_SHIFT) for _ in range(2))
    moved = (1 / scale, 0.0, shift_x, 0.0, 1 / scale, shift_y, float(Filter.BILINEAR))
    # Never nothing: a copy that is the image would be a real that is called fake.
    factors = [1 + _signed(rng, 0.05, 0.2) for _ in range(3)]
    colours = (*factors, rng.randint(-5, 5) / 256, *rng.sample((0, 1, 2, 3), 4))
    radii = [rng.uniform(0.25, 0.6) for _ in range(2)]
    room = [REACH - (1 + LARGEST_WAVE * len(LOBES)) * radius for radius in radii]
    centre = [rng.uniform(-free, free) for free in room]
    return (("self_blend", (*moved, *colours, *centre, *radii, *_draw_edge(rng))),)


def _draw_edge(rng: random.Random) -> tuple[float, ...]:
    """The other parameters of `blob`, from its waves on."""
    waves = [
        value
        for _ in LOBES
        for value in (rng.uniform(0, LARGEST_WAVE), rng.uniform(0, 2 * math.pi))
    ]
    return (*waves, rng.uniform(0.15, 0.6), rng.choice(RATIOS))


def self_blend(images: Tensor, parameters: Tensor) -> Tensor:
    """Images blended with copies of themselves, moved and recoloured, within a blob.

    Args:
        images: (N, 3, H, W), uint8.
        parameters: (N, 27): the 7 of `affine` and the 8 of `jitter` for the copy, then those of
            `blob`.
    """
    moved, colours, region = parameters.split((7, 8, 12), 1)
    copies = jitter(affine(images, moved), colours).float()
    shares = blob(sent(region.float(), images), images.shape[-2:])
    return to_bytes(torch.lerp(images.float(), copies, shares).round_())


def mix(fake: Tensor, real: Tensor, seed: int) -> Tensor:
    """The fake, or a part of its weight (RATIOS), within a blob near the middle; else the real.

    Args:
        fake: (3, H, W), uint8; both are left as they are.
        real: the same.
        seed: of the view; it draws the blob.

    Returns:
        The same shape; the fake itself where a mix would keep too little of it for its label.
    """
    rng = random.Random(f"mix {seed}")
    radii = [rng.uniform(*MIXED_RADII) for _ in range(2)]
    centre = [rng.uniform(-MIXED_CENTRE, MIXED_CENTRE) for _ in range(2)]
    region = torch.tensor([(*centre, *radii, *_draw_edge(rng))])
    with one_thread():
        shares = blob(region, fake.shape[-2:])[0]
        mixed = to_bytes(torch.lerp(real.float(), fake.float(), shares).round_())
        kept, whole = (int((one.int() - real.int()).abs_().sum()) for one in (mixed, fake))
    return mixed if kept >= SMALLEST_SHARE * whole else fake


def blob(parameters: Tensor, shape: torch.Size) -> Tensor:
    """How much of a copy is seen where, from 0 outside of the blob to its ratio, (N, 1, H, W).

    Args:
        parameters: (N, 12): centre (x, y) and radii (x, y), from -1 to 1 across the image; height
            and phase of each wave of LOBES; how far the soft edge reaches inwards, of 1; the ratio.
        shape: H and W.
    """
    columns = parameters[:, :, None, None].unbind(1)
    (x, y, across, down), waves, (softness, ratio) = columns[:4], columns[4:10], columns[10:]
    height, width = shape
    device = parameters.device
    dx = ((torch.arange(width, device=device) * 2 + 1) / width - 1 - x) / across  # (N, 1, W)
    dy = (((torch.arange(height, device=device) * 2 + 1) / height - 1)[:, None] - y) / down
    angle = torch.atan2(dy, dx)
    edge = torch.ones_like(angle)
    for count, wave, phase in zip(LOBES, waves[::2], waves[1::2], strict=True):
        edge.add_((count * angle).add_(phase).cos_().mul_(wave))
    inside = ((1 - torch.hypot(dx, dy) / edge) / softness).clamp_(0, 1)
    smooth: Tensor = inside * inside * (3 - 2 * inside) * ratio
    return smooth[:, None]


def _signed(rng: random.Random, least: float, most: float) -> float:
    return rng.choice((-1, 1)) * rng.uniform(least, most)
