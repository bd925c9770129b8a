"""Ways to forge a region of a crop, one function each: what the demo set's fakes are made with.

Each leaves traces of its own. Some disagree with their surroundings in colour, some only in how
fine their detail is, and none is the same artefact as another: a network that knows some of them
does not simply know the rest.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.special import ndtr

Pixels = NDArray[np.float64]  # (S, S, 3), 0 to 255
Mask = NDArray[np.float64]  # (S, S), 0 to 1

REGION_AREA = (0.35, 0.45)
"""Share of the image that the forged region covers."""

REGION_OFFSET = 0.15
"""How far from the middle the region may lie, as a share of what fits: like a face, it is rather
in the middle, which is learned faster."""

REGION_SCALE = (1.3, 2.0)
"""Enlargement of a spliced region; interpolation smooths its finest detail."""

COLOUR_MATCH = 0.7
"""Share of the difference in mean colour to its surroundings that a foreign region is corrected by,
as tools for face swaps do. Without it the colours of a whole image tell a fake (AUC 0.69)."""

COLOUR_SHIFT = 35.0
"""Standard deviation of the shift of each channel that remains, in levels of 255."""

WIDE_COLOUR_SHIFT = 50.0
"""The same for `blend`, whose edge and detail give little away."""

LIGHT_SHIFT = 50.0
"""Standard deviation by which each channel of a copied region is lighter or darker, in levels of
255: its edge gives little away, and its detail nothing."""

FEATHER = (0.3, 0.5)
"""Radius in pixels over which a region is blended into its surroundings, but for `blend`."""

WIDE_FEATHER = (1.0, 2.0)
"""The same for `blend`, whose edge is what shows."""

MOVED = (0.2, 0.4)
"""How far a copied region is moved in each direction, as a share of the image's side."""

REDUCTION = (3.0, 4.5)
"""By how much a resampled region was reduced before it was enlarged again."""

RECOMPRESSED_QUALITY = (1, 3)
"""Of the JPEG that a recompressed region went through, with its blocks beside the image's own, and
those of its colours twice as wide."""

MEDIAN_OF = 7
"""Side in pixels of the squares whose median a smoothed region has."""

SMALLEST_CHANGE = {
    "splice": 18.0,
    "blend": 24.0,
    "copy-move": 20.0,
    "resample": 6.0,
    "recompress": 12.0,
    "smooth": 5.0,
}
"""Mean change inside the region, in levels of 255, below which another crop is drawn: a fake that
equals the real crop would be a wrong label."""


def forge(
    method: str, real: Pixels, donor: Pixels, generator: np.random.Generator
) -> Pixels | None:
    """Forges a region of a real crop.

    Args:
        method: one of METHODS.
        real: (S, S, 3) crop.
        donor: (S, S, 3) crop from elsewhere in the same part of the photographs.
        generator: draws size, place and strength.

    Returns:
        (S, S, 3) forged image; None where hardly anything would have changed.
    """
    feather = WIDE_FEATHER if method == "blend" else FEATHER
    mask = draw_mask(len(real), feather, generator)[:, :, None]
    region = np.clip(_REGIONS[method](real, donor, mask, generator), 0.0, 255.0)
    change = (np.abs(region - real) * mask).sum() / mask.sum() / 3
    if change < SMALLEST_CHANGE[method]:
        return None
    return mask * region + (1.0 - mask) * real


def draw_mask(side: int, feather: tuple[float, float], generator: np.random.Generator) -> Mask:
    """(side, side) weights in [0, 1]: an ellipse with soft edges, clear of the image's border."""
    margin = 0.04 * side
    area = generator.uniform(*REGION_AREA) * side**2
    aspect = np.exp(generator.uniform(-0.4, 0.4))
    radii = np.sqrt(area * np.array([aspect, 1 / aspect]) / np.pi)
    radii = np.minimum(radii, side / 2 - margin)
    middle = side / 2 + REGION_OFFSET * generator.uniform(-1, 1, 2) * (side / 2 - radii - margin)
    across, down = ((np.arange(side) + 0.5 - middle[:, None]) / radii[:, None])[:, :, None]
    offset = np.hypot(across.T, down)  # 1 on the edge
    slope = np.hypot(across.T / radii[0], down / radii[1])
    distance = (offset - 1) * offset / np.maximum(slope, 1e-9)  # in pixels, close to the edge
    # A pixel is as wide as this deviation.
    softness = np.hypot(generator.uniform(*feather), 12**-0.5)
    mask: Mask = ndtr(-distance / softness)
    return mask


def levels(pixels: Pixels) -> NDArray[np.uint8]:
    """Whole levels of 255."""
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _splice(real: Pixels, donor: Pixels, mask: Mask, generator: np.random.Generator) -> Pixels:
    """From elsewhere, enlarged, its colours brought near: what a face swap does."""
    side = len(real)
    kept = round(side / generator.uniform(*REGION_SCALE))
    left, top = (int(edge) for edge in generator.integers(0, side - kept + 1, 2))
    whole = Image.fromarray(levels(donor)).resize(
        (side, side), Image.Resampling.BICUBIC, box=(left, top, left + kept, top + kept)
    )
    return _recoloured(np.asarray(whole, dtype=np.float64), real, mask, COLOUR_SHIFT, generator)


def _blend(real: Pixels, donor: Pixels, mask: Mask, generator: np.random.Generator) -> Pixels:
    """From elsewhere, as sharp as it was; it fades into its surroundings."""
    return _recoloured(donor, real, mask, WIDE_COLOUR_SHIFT, generator)


def _copy_move(real: Pixels, _donor: Pixels, _mask: Mask, generator: np.random.Generator) -> Pixels:
    """From beside it in the same image, pixel by pixel, in another light: as fine as it was."""
    low, high = (round(share * len(real)) for share in MOVED)
    shift = generator.integers(low, high + 1, 2) * generator.choice((-1, 1), 2)
    padded = np.pad(real, ((high, high), (high, high), (0, 0)), mode="reflect")
    top, left = high + shift
    moved: Pixels = padded[top : top + len(real), left : left + len(real)]
    return moved + generator.normal(0.0, LIGHT_SHIFT, 3)


def _resample(real: Pixels, _donor: Pixels, _mask: Mask, generator: np.random.Generator) -> Pixels:
    """Reduced and enlarged again: softer than what surrounds it."""
    side = len(real)
    reduced = round(side / generator.uniform(*REDUCTION))
    small = Image.fromarray(levels(real)).resize((reduced, reduced), Image.Resampling.BICUBIC)
    whole = small.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(whole, dtype=np.float64)


def _recompress(
    real: Pixels, _donor: Pixels, _mask: Mask, generator: np.random.Generator
) -> Pixels:
    """Through a JPEG of low quality whose blocks lie elsewhere than the image's own."""
    top, left = (int(edge) for edge in generator.integers(1, 8, 2))
    padded = np.pad(real, ((top, 8 - top), (left, 8 - left), (0, 0)), mode="reflect")
    file = io.BytesIO()
    quality = int(generator.integers(RECOMPRESSED_QUALITY[0], RECOMPRESSED_QUALITY[1] + 1))
    Image.fromarray(levels(padded)).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        whole = np.asarray(image, dtype=np.float64)
    return whole[top : top + len(real), left : left + len(real)]


def _smooth(real: Pixels, _donor: Pixels, _mask: Mask, _generator: np.random.Generator) -> Pixels:
    """Retouched: no texture, but edges as sharp as they were."""
    whole = Image.fromarray(levels(real)).filter(ImageFilter.MedianFilter(MEDIAN_OF))
    return np.asarray(whole, dtype=np.float64)


def _recoloured(
    region: Pixels, real: Pixels, mask: Mask, shift: float, generator: np.random.Generator
) -> Pixels:
    difference: Pixels = ((real - region) * mask).sum(axis=(0, 1)) / mask.sum()
    return region + COLOUR_MATCH * difference + generator.normal(0.0, shift, 3)


_Region = Callable[[Pixels, Pixels, Mask, np.random.Generator], Pixels]
"""The real crop, a donor, the region's mask and a generator -> the whole crop as if all of it were
forged."""

_REGIONS: dict[str, _Region] = {
    "splice": _splice,
    "blend": _blend,
    "copy-move": _copy_move,
    "resample": _resample,
    "recompress": _recompress,
    "smooth": _smooth,
}

METHODS = tuple(_REGIONS)
"""Their names, in the order that the demo set takes turns in."""
