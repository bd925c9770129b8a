"""The policies image by image, with Pillow, torchvision and timm: the oracle of the batched ones.

What search.pixels.augmentation.augment was until canvases came; it stays as it was.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2

Step = Any
"""A callable; torchvision and timm declare no types for theirs."""

_GREY = (128, 128, 128)


Transform = Callable[[Image.Image], Tensor]


def show(image: Image.Image, policy: str, strength: float, size: int, seed: int) -> Tensor:
    """The reference's view of an image, uint8 (3, size, size); seeds all global generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - timm draws from it
    torch.manual_seed(seed)
    return POLICIES[policy](strength, size)(image)


def _between(strength: float, mildest: float, strongest: float) -> float:
    return mildest + (strongest - mildest) * strength


def _compose(steps: list[Step], *after: Step) -> Transform:
    transform: Transform = v2.Compose([*steps, v2.PILToTensor(), *after])
    return transform


def _resize(image_size: int) -> Step:
    return v2.Resize((image_size, image_size), antialias=True)


def _crop(image_size: int, smallest_area: float) -> Step:
    return v2.RandomResizedCrop(
        (image_size, image_size), scale=(smallest_area, 1.0), ratio=(0.8, 1.25), antialias=True
    )


def _jitter(amount: float) -> Step:
    return v2.ColorJitter(amount, amount, amount, hue=amount / 4)


def _degradation(strength: float, image_size: int) -> list[Step]:
    """Before the crop: compression blocks lie on the grid of the file, not of the crop."""
    p = _between(strength, 0.2, 0.5)
    steps: list[Step] = [
        v2.RandomApply([Blur(_between(strength, 0.5, 2.5))], p),
        v2.RandomApply([DownAndUp(_between(strength, 1.3, 4.0))], p),
        v2.RandomApply([Noise(_between(strength, 3.0, 20.0))], p),
        v2.RandomApply(
            [Recompress(round(_between(strength, 80, 30)), round(_between(strength, 1, 4)))],
            p + 0.3,
        ),
    ]
    return [Shrink(2 * image_size), v2.RandomOrder(steps)]


def _none(_strength: float, image_size: int) -> Transform:
    return _compose([_resize(image_size)])


def _flip(_strength: float, image_size: int) -> Transform:
    return _compose([_resize(image_size), v2.RandomHorizontalFlip()])


def _baseline(_strength: float, image_size: int) -> Transform:
    return _compose([_resize(image_size), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()])


def _light(strength: float, image_size: int) -> Transform:
    crop = _crop(image_size, _between(strength, 0.9, 0.5))
    return _compose([crop, v2.RandomHorizontalFlip(), _jitter(_between(strength, 0.05, 0.25))])


def _geometric(strength: float, image_size: int) -> Transform:
    shift, shear = _between(strength, 0.02, 0.1), _between(strength, 2, 15)
    affine = v2.RandomAffine(
        degrees=_between(strength, 5, 30), translate=(shift, shift), shear=shear, fill=_GREY
    )
    crop = _crop(image_size, _between(strength, 0.8, 0.25))
    return _compose([crop, v2.RandomHorizontalFlip(), v2.RandomApply([affine], 0.5)])


def _colour(strength: float, image_size: int) -> Transform:
    steps = [
        _resize(image_size),
        v2.RandomHorizontalFlip(),
        _jitter(_between(strength, 0.1, 0.5)),
        v2.RandomGrayscale(_between(strength, 0.02, 0.2)),
        v2.RandomAutocontrast(_between(strength, 0.05, 0.2)),
        v2.RandomEqualize(_between(strength, 0.02, 0.1)),
    ]
    return _compose(steps)


def _degrade(strength: float, image_size: int) -> Transform:
    crop = _crop(image_size, _between(strength, 0.95, 0.7))
    return _compose([*_degradation(strength, image_size), crop, v2.RandomHorizontalFlip()])


def _randaugment(strength: float, image_size: int) -> Transform:
    magnitude = round(_between(strength, 2, 10))
    randaugment = rand_augment_transform(
        f"rand-m{magnitude}-n2-mstd0.5-inc1", {"translate_pct": 0.3, "img_mean": _GREY}
    )
    return _compose([_crop(image_size, 0.7), v2.RandomHorizontalFlip(), randaugment])


def _erasing(probability: float, largest_area: float) -> Step:
    return RandomErasing(probability, max_area=largest_area, device="cpu")


def _erase(strength: float, image_size: int) -> Transform:
    erasing = _erasing(_between(strength, 0.2, 0.8), _between(strength, 0.1, 1 / 3))
    return _compose([_crop(image_size, 0.8), v2.RandomHorizontalFlip()], erasing)


def _strong(strength: float, image_size: int) -> Transform:
    steps = [
        *_degradation(strength, image_size),
        _crop(image_size, _between(strength, 0.8, 0.3)),
        v2.RandomHorizontalFlip(),
        _jitter(_between(strength, 0.1, 0.4)),
        v2.RandomGrayscale(_between(strength, 0.02, 0.1)),
    ]
    return _compose(steps, _erasing(_between(strength, 0.1, 0.4), 0.2))


POLICIES: dict[str, Callable[[float, int], Transform]] = {
    "none": _none,
    "flip": _flip,
    "baseline": _baseline,
    "light": _light,
    "geometric": _geometric,
    "colour": _colour,
    "degrade": _degrade,
    "randaugment": _randaugment,
    "erase": _erase,
    "strong": _strong,
}


_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Shrink:
    """Brings images down to `longest_side` pixels, which bounds the cost of what follows."""

    longest_side: int

    def __call__(self, image: Image.Image) -> Image.Image:
        if max(image.size) <= self.longest_side:
            return image
        smaller = image.copy()
        smaller.thumbnail((self.longest_side, self.longest_side))
        return smaller


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with a standard deviation of up to `most` pixels."""

    most: float

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, self.most)))


@dataclass(frozen=True)
class DownAndUp:
    """Resizes down by a factor of up to `most` and back again, with filters drawn at random."""

    most: float

    def __call__(self, image: Image.Image) -> Image.Image:
        factor = random.uniform(1.0, self.most)
        small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
        down, up = random.choice(_FILTERS), random.choice(_FILTERS)
        return image.resize(small, down).resize(image.size, up)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise, the same in all channels or not, with a deviation of up to `most` of 255."""

    most: float

    def __call__(self, image: Image.Image) -> Image.Image:
        channels = random.choice((1, 3))
        noise = torch.randn(image.height, image.width, channels).numpy()
        noisy = np.asarray(image, np.float32) + noise * random.uniform(1.0, self.most)
        return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Recompress:
    """Saves and reads the image as JPEG or WebP, up to `most` times in a row, as sharing does."""

    lowest_quality: int  # of 95, the highest that is drawn
    most: int

    def __call__(self, image: Image.Image) -> Image.Image:
        for _ in range(random.randint(1, self.most)):
            quality = random.randint(self.lowest_quality, 95)
            stream = io.BytesIO()
            if random.random() < 0.5:
                image.save(stream, "JPEG", quality=quality, subsampling=random.choice((0, 2)))
            else:
                # 9 ms for 512 x 512 pixels on one core; the default, method 4, takes 16 ms.
                image.save(stream, "WEBP", quality=quality, method=1)
            with Image.open(stream) as decoded:
                image = decoded.convert("RGB")
        return image
