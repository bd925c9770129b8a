"""The kinds of samples: what is drawn for one, and how its pixels follow from that.

`render` is a function of its images and parameters alone, which the manifest records. It computes
with whole numbers, and with float64 one element at a time: no sum whose order, no exponential whose
last bit, depends on the processor. So one version of Pillow gives the same bytes on every machine.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.uint8]  # (height, width, 3)

MARGIN = 0.08
"""Share of width and height at each edge that no mask covers: a sample stays what surrounds it."""

CORNERS = (6, 12)
RADIUS = (0.22, 0.45)
"""Distance of a mask's corners from its middle, as shares of width and height. Masks are as large
as the faces of the challenge: their shape is what landmarks would give."""

FEATHER = (0.01, 0.05)
"""Radius over which a mask fades, as a share of the shorter side."""

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
"""Of a blend; arXiv:2204.08376, section 3.2, draws from the same six."""

SCALE, DEGREES, SHIFT = (0.95, 1.05), 4.0, 0.03
"""Of the small affine map (arXiv:2204.08376 has 0.95 to 1.05 and 0.03); it turns a little, too."""

GAIN, OFFSET = 0.06, 10
"""Largest change of a channel: a factor of 1 +- GAIN, and levels of 255. Twice as much paints a
patch on a face that nobody would take for it."""

SHARPENED, RESAMPLED, COMPRESSED = (60, 200), (0.4, 0.9), (40, 90)
"""Percent of an unsharp mask, scale on the way down and up again, JPEG quality."""

QUALITIES = (30, 95)
"""JPEG qualities of recompressed samples."""

SMALLEST_CHANGE = 1.0
"""Mean change inside the mask, in levels of 255, below which a self-blended image would be a real
one with a wrong label."""

SMALLEST_SHARE = 0.1
"""Of what tells the fake from the real of a group, that a mix of them must keep to be fake."""


class Unchanged(ValueError):  # noqa: N818 - it says what is wrong with the sample
    """The parameters would make an image whose label would be wrong."""


@dataclass(frozen=True)
class Mask:
    """A soft region."""

    outline: tuple[tuple[float, float], ...]  # corners, shares of width and height
    feather: float  # radius, share of the shorter side
    strength: float  # weight of what is blended in, in (0, 1]


@dataclass(frozen=True)
class SelfBlended:
    """A real image blended with an altered copy of itself (arXiv:2204.08376), which is fake.

    The copy inside the mask is moved a little and has other colours; the detail of either is
    altered, so that neither smooth nor rough regions are a sign by themselves. There, colours are
    altered outside as well; here they are not, since an odd tint of the whole image would do
    without the seam. The mask is a random one, without landmarks.
    """

    mask: Mask
    altered: Literal["inside", "outside"]  # in its detail
    gains: tuple[float, float, float]
    offsets: tuple[int, int, int]  # levels of 255
    detail: Literal["sharpened", "resampled", "compressed", "kept"]
    amount: float  # of the detail's change, see the constants
    matrix: tuple[float, float, float, float]  # of the inverse affine map, about the middle
    shift: tuple[float, float]  # shares of width and height


@dataclass(frozen=True)
class Mixed:
    """The pixels of a real and a fake image of one group under a soft mask, which are fake."""

    mask: Mask
    outside: Literal["real", "fake"]


@dataclass(frozen=True)
class Recompressed:
    """An image once more through JPEG, as real or as fake as before."""

    quality: int
    subsampling: Literal["4:4:4", "4:2:0"]


Parameters = SelfBlended | Mixed | Recompressed

KINDS: dict[str, type[SelfBlended] | type[Mixed] | type[Recompressed]] = {
    "self-blended": SelfBlended,
    "mixed": Mixed,
    "recompressed": Recompressed,
}


def draw(kind: str, generator: np.random.Generator) -> Parameters:
    """Random parameters of a sample, rounded so that their decimal text is exact."""
    if kind == "self-blended":
        return _draw_self_blended(generator)
    if kind == "mixed":
        outside: Literal["real", "fake"] = "real" if generator.random() < 0.5 else "fake"
        return Mixed(draw_mask(generator), outside)
    lowest, highest = QUALITIES
    quality = int(generator.integers(lowest, highest + 1))
    return Recompressed(quality, "4:2:0" if generator.random() < 0.5 else "4:4:4")


def draw_mask(generator: np.random.Generator) -> Mask:
    """A random star-shaped region around the middle, clear of the border."""
    middle = generator.uniform(0.42, 0.58, 2)
    corners = int(generator.integers(CORNERS[0], CORNERS[1] + 1))
    size = generator.uniform(*RADIUS, 2)
    outline = []
    for corner in range(corners):
        angle = 2 * math.pi * (corner + generator.uniform(-0.3, 0.3)) / corners
        radius = size * generator.uniform(0.7, 1.0)
        point = middle + radius * np.array([math.cos(angle), math.sin(angle)])
        x, y = np.clip(point, MARGIN, 1 - MARGIN).tolist()
        outline.append((round(x, 4), round(y, 4)))
    feather = round(float(generator.uniform(*FEATHER)), 4)
    return Mask(tuple(outline), feather, STRENGTHS[int(generator.integers(len(STRENGTHS)))])


def _draw_self_blended(generator: np.random.Generator) -> SelfBlended:
    mask = draw_mask(generator)
    gains = [round(gain, 4) for gain in generator.uniform(1 - GAIN, 1 + GAIN, 3).tolist()]
    offsets = generator.integers(-OFFSET, OFFSET + 1, 3).tolist()
    details: tuple[tuple[Literal["sharpened", "resampled", "compressed", "kept"], float], ...] = (
        ("sharpened", float(generator.integers(SHARPENED[0], SHARPENED[1] + 1))),
        ("resampled", round(float(generator.uniform(*RESAMPLED)), 4)),
        ("compressed", float(generator.integers(COMPRESSED[0], COMPRESSED[1] + 1))),
        ("kept", 0.0),
    )
    detail, amount = details[int(generator.integers(len(details)))]
    scale = generator.uniform(*SCALE)
    angle = math.radians(generator.uniform(-DEGREES, DEGREES))
    along, across = round(scale * math.cos(angle), 6), round(scale * math.sin(angle), 6)
    dx, dy = (round(value, 4) for value in generator.uniform(-SHIFT, SHIFT, 2).tolist())
    return SelfBlended(
        mask=mask,
        altered="inside" if generator.random() < 0.5 else "outside",
        gains=(gains[0], gains[1], gains[2]),
        offsets=(offsets[0], offsets[1], offsets[2]),
        detail=detail,
        amount=amount,
        matrix=(along, -across, across, along),
        shift=(dx, dy),
    )


def render(images: Sequence[Image.Image], parameters: Parameters) -> Image.Image:
    """The sample that parameters make of RGB images: of one, or of a real and a fake.

    Raises:
        Unchanged: if its label would be wrong.
    """
    if isinstance(parameters, SelfBlended):
        return _self_blend(images[0], parameters)
    if isinstance(parameters, Mixed):
        return _mix(images[0], images[1], parameters)
    return _compressed(images[0], parameters.quality, parameters.subsampling)


def to_bytes(image: Image.Image) -> bytes:
    """The file of a sample: BMP, which is not compressed.

    The bytes of a PNG depend on the zlib that wrote it, and those of zlib-ng on the processor.
    """
    content = io.BytesIO()
    image.save(content, "BMP")
    return content.getvalue()


def _self_blend(image: Image.Image, parameters: SelfBlended) -> Image.Image:
    altered = _with_detail(image, parameters.detail, parameters.amount)
    inside, outside = (altered, image) if parameters.altered == "inside" else (image, altered)
    weights = _weights(parameters.mask, image.size)
    box = weights.getbbox() or (0, 0, *image.size)
    blended = outside.copy()
    region = _moved(_coloured(inside, parameters), parameters, box)
    blended.paste(region, box, weights.crop(box))
    if _mean_change(blended, outside, weights) < SMALLEST_CHANGE:
        raise Unchanged("a self-blended image must differ from the real one")
    return blended


def _mix(real: Image.Image, fake: Image.Image, parameters: Mixed) -> Image.Image:
    inside, outside = (fake, real) if parameters.outside == "real" else (real, fake)
    if inside.size != outside.size:
        inside = inside.resize(outside.size, Image.Resampling.BICUBIC)
    mixed = Image.composite(inside, outside, _weights(parameters.mask, outside.size))
    real, fake = (outside, inside) if parameters.outside == "real" else (inside, outside)
    kept, whole = _change(mixed, real), _change(fake, real)
    if whole == 0 or kept < SMALLEST_SHARE * whole:
        raise Unchanged("a mix must keep what makes the fake one")
    return mixed


def _coloured(image: Image.Image, parameters: SelfBlended) -> Image.Image:
    table = [
        min(255, max(0, round(gain * level + offset)))
        for gain, offset in zip(parameters.gains, parameters.offsets, strict=True)
        for level in range(256)
    ]
    return image.point(table)


def _with_detail(image: Image.Image, detail: str, amount: float) -> Image.Image:
    if detail == "sharpened":
        return image.filter(ImageFilter.UnsharpMask(radius=1, percent=int(amount), threshold=0))
    if detail == "resampled":
        width, height = (max(1, round(side * amount)) for side in image.size)
        smaller = image.resize((width, height), Image.Resampling.BILINEAR)
        return smaller.resize(image.size, Image.Resampling.BICUBIC)
    if detail == "compressed":
        return _compressed(image, int(amount), "4:2:0")
    return image


def _compressed(image: Image.Image, quality: int, subsampling: str) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(content, formats=("JPEG",)) as compressed:
        return compressed.convert("RGB")


def _weights(mask: Mask, size: tuple[int, int]) -> Image.Image:
    """What is inside counts for so many 255ths, as an image of one channel."""
    width, height = size
    region = Image.new("L", size)
    outline = [(round(x * (width - 1)), round(y * (height - 1))) for x, y in mask.outline]
    ImageDraw.Draw(region).polygon(outline, fill=255)
    soft = region.filter(ImageFilter.GaussianBlur(mask.feather * min(size)))
    return soft.point([round(mask.strength * level) for level in range(256)])


def _moved(
    image: Image.Image, parameters: SelfBlended, box: tuple[int, int, int, int]
) -> Image.Image:
    """A box of the image under the affine map, interpolated bilinearly; its edges go on outside.

    Pillow's own works in the processor's floats, whose last bit differs where multiplication and
    addition are one instruction.
    """
    pixels: Pixels = np.asarray(image)
    height, width, _ = pixels.shape
    first, upmost, last, lowest = box
    down, right = np.mgrid[upmost:lowest, first:last].astype(np.float64)
    right, down = right - (width - 1) / 2, down - (height - 1) / 2
    a, b, c, d = parameters.matrix
    x = a * right + b * down + (width - 1) / 2 + parameters.shift[0] * width
    y = c * right + d * down + (height - 1) / 2 + parameters.shift[1] * height
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    left, top = x.astype(np.int64), y.astype(np.int64)
    beside, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, along = (x - left)[..., None], (y - top)[..., None]
    upper = pixels[top, left] * (1 - across) + pixels[top, beside] * across
    lower = pixels[below, left] * (1 - across) + pixels[below, beside] * across
    moved = np.rint(upper * (1 - along) + lower * along)
    return Image.fromarray(moved.astype(np.uint8))


def _change(image: Image.Image, other: Image.Image) -> int:
    """Sum of the differences of all levels."""
    return int(np.abs(np.asarray(image, np.int64) - np.asarray(other, np.int64)).sum())


def _mean_change(image: Image.Image, other: Image.Image, weights: Image.Image) -> float:
    """Mean difference in levels where the weights are at least half their largest."""
    inside = np.asarray(weights)
    inside = 2 * inside.astype(np.int64) >= max(1, int(inside.max()))
    difference = np.abs(np.asarray(image, np.int64) - np.asarray(other, np.int64))[inside]
    return int(difference.sum()) / max(1, difference.size)
