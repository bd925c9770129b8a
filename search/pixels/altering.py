"""What happens to images on their way through the world: RGB image -> RGB image, before the canvas.

Each kind has several strengths, mildest first. An alteration depends on the image, its strength and
its seed alone, and a seed on the image's name: not on the order, nor on the other images.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

Rgb = Image.Image
Change = Callable[[Rgb, float, int], Rgb]
"""Of an RGB image, a strength and a seed."""


@dataclass(frozen=True)
class AlterationKind:
    """One way to alter images."""

    name: str
    unit: str  # what a strength is
    strengths: tuple[float, ...]  # mildest first
    change: Change
    keeps_size: bool = True


@dataclass(frozen=True)
class Alteration:
    """A kind of KINDS, or CLEAN, at one strength."""

    kind: str
    strength: float

    def __str__(self) -> str:
        return f"{self.kind} {self.strength:g}"

    def apply(self, image: Rgb, name: str) -> Rgb:
        """The altered image, RGB.

        Args:
            image: RGB; left as it is.
            name: of the image, as its list spells it: what is random is drawn from it.
        """
        if self.kind == CLEAN.kind:
            return image
        return KINDS[self.kind].change(image, self.strength, seed_of(name, self.kind))


CLEAN = Alteration("clean", 0.0)
"""The image as it is."""


def seed_of(name: str, kind: str) -> int:
    """The seed of one image's alterations of a kind, in [0, 2**64): of all strengths the same, so
    that a stronger one is more of the same noise."""
    digest = hashlib.blake2b(f"{kind}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


# Compression


def _encoded(image: Rgb, form: str, **options: Any) -> Rgb:
    """An image written to memory and read back."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    with Image.open(stream) as decoded:
        return decoded.convert("RGB")


def _jpeg(image: Rgb, quality: float, _seed: int) -> Rgb:
    return _encoded(image, "JPEG", quality=round(quality))


USUAL_QUALITY = 75
"""What libjpeg takes where nobody says otherwise."""


def _jpeg_twice(image: Rgb, quality: float, seed: int) -> Rgb:
    return _jpeg(_jpeg(image, quality, seed), USUAL_QUALITY, seed)


def _webp(image: Rgb, quality: float, _seed: int) -> Rgb:
    # Method 0: a third of the time of the usual one.
    return _encoded(image, "WEBP", quality=round(quality), method=0)


# Detail


def _blur(image: Rgb, deviation: float, _seed: int) -> Rgb:
    return image.filter(ImageFilter.GaussianBlur(deviation * min(image.size) / 256))


def _noise(image: Rgb, deviation: float, seed: int) -> Rgb:
    levels = np.asarray(image, dtype=np.float32)
    drawn = np.random.default_rng(seed).standard_normal(levels.shape, dtype=np.float32)
    return Image.fromarray((levels + deviation * drawn).round().clip(0, 255).astype(np.uint8))


def _scaled(image: Rgb, factor: float, kernel: Image.Resampling) -> Rgb:
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), kernel)


def _down_and_up(image: Rgb, factor: float, _seed: int) -> Rgb:
    small = _scaled(image, 1 / factor, Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _screenshot(image: Rgb, scale: float, _seed: int) -> Rgb:
    # The PNG that it is kept as loses nothing, so there is no need to write one.
    return _scaled(image, scale, Image.Resampling.BILINEAR)


# Tone


def _brightness(image: Rgb, factor: float, _seed: int) -> Rgb:
    return ImageEnhance.Brightness(image).enhance(factor)


def _contrast(image: Rgb, factor: float, _seed: int) -> Rgb:
    return ImageEnhance.Contrast(image).enhance(factor)


def _grey(image: Rgb, share: float, _seed: int) -> Rgb:
    return ImageEnhance.Color(image).enhance(1 - share)


# Geometry


def _crop(image: Rgb, share: float, seed: int) -> Rgb:
    """A box at a random place, its sides so large a share of the image's."""
    across, down = random.Random(seed).random(), random.Random(seed + 1).random()
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = round(across * (image.width - width)), round(down * (image.height - height))
    return image.crop((left, top, left + width, top + height))


QUALITIES = (90.0, 70.0, 50.0, 30.0)

KINDS: Mapping[str, AlterationKind] = {
    kind.name: kind
    for kind in (
        AlterationKind("jpeg", "quality", QUALITIES, _jpeg),
        AlterationKind("jpeg-twice", f"quality, then {USUAL_QUALITY}", QUALITIES, _jpeg_twice),
        AlterationKind("webp", "quality", QUALITIES, _webp),
        AlterationKind("blur", "deviation, 256ths of the side", (0.5, 1.0, 2.0, 4.0), _blur),
        AlterationKind("noise", "deviation, levels", (2.5, 5.0, 10.0, 20.0), _noise),
        AlterationKind("down-and-up", "factor", (1.5, 2.0, 3.0, 4.0), _down_and_up),
        AlterationKind("screenshot", "scale", (0.9, 0.7, 0.5, 0.3), _screenshot, keeps_size=False),
        AlterationKind(
            "crop", "share of the side", (0.9, 0.75, 0.6, 0.45), _crop, keeps_size=False
        ),
        AlterationKind("darker", "factor", (0.8, 0.6, 0.4), _brightness),
        AlterationKind("brighter", "factor", (1.25, 1.5, 2.0), _brightness),
        AlterationKind("less-contrast", "factor", (0.75, 0.5, 0.25), _contrast),
        AlterationKind("more-contrast", "factor", (1.25, 1.5, 2.0), _contrast),
        AlterationKind("grey", "share", (0.5, 1.0), _grey),
    )
}
"""By name."""

ALTERATIONS = tuple(
    Alteration(kind.name, strength) for kind in KINDS.values() for strength in kind.strengths
)
"""All of them, in the order in which they are told."""

SUBSET = (
    Alteration("jpeg", 50.0),
    Alteration("noise", 10.0),
    Alteration("down-and-up", 2.0),
    Alteration("less-contrast", 0.5),
)
"""What `auc_stress` is the mean of: one each of compression, noise, lost detail and tone, of middle
strength. Fixed, so that the figures of two searches can be compared."""
